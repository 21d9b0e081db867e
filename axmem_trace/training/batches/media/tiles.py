"""Families that cut a large image into square tiles: Llama 3.2 and 4, InternVL, Idefics3 and SmolVLM."""

from __future__ import annotations

import math

import torch

from axmem_trace.training.batches.media.tile_choice import canvas_without_loss, closest_grid
from axmem_trace.training.batches.media.types import SEPARATOR, Media, Question, image_token, pixels, side_of


def llama4(question: Question) -> Media:
    """Llama 4: tiles line by line with separators, and one more tile for the whole image.

    Source: transformers `image_processing_llama4.py` (`max_patches` 16, pixels in bf16), `processing_llama4.py`
    `_prompt_split_image`.
    """
    vision = question.vision
    tile, most = side_of(vision.image_size), int(question.option("max_patches", 16))
    side = tile * math.isqrt(most)
    down, across = canvas_without_loss(question.height or side, question.width or side, tile, most)
    shrink = round(1 / vision.pixel_shuffle_ratio**2)
    tokens = (tile // int(vision.patch_size)) ** 2 // shrink
    placeholder = image_token(question.config)
    count = down * across + (1 if down * across > 1 else 0)
    line = (*(placeholder,) * tokens, SEPARATOR) * across  # a separator after each tile: between them, and at the end
    split = line * down if down * across > 1 else ()
    return Media(
        span=(SEPARATOR, *split, SEPARATOR, *(placeholder,) * tokens, SEPARATOR),
        inputs={"pixel_values": pixels(question.total * count, 3, tile, tile, dtype=torch.bfloat16)},
        placeholder=placeholder,
        rule=f"{count} tiles of {tile} pixels, {tokens} tokens each (processing_llama4.py)",
        height=down * tile,
        width=across * tile,
    )


def mllama(question: Question) -> Media:
    """Llama 3.2 Vision: one token per image; the tower always runs `max_num_tiles` tiles, which cross-attention reads.

    Source: transformers `image_processing_mllama.py` `pad_batches_and_tiles`, `convert_aspect_ratios_to_ids`;
    `processing_mllama.py` `convert_sparse_cross_attention_mask_to_dense` (its mask is added with the tokens).
    """
    vision = question.vision
    tile, most = side_of(vision.image_size), int(vision.max_num_tiles)
    side = tile * math.isqrt(most)
    down, across = canvas_without_loss(question.height or side, question.width or side, tile, most)
    ratios = [list(ratio) for ratio in vision.supported_aspect_ratios]
    number = 1 + ratios.index([across, down]) if [across, down] in ratios else 1
    shape = (question.rows, question.per_row)
    mask = (torch.arange(most) < down * across).to(torch.int64)
    placeholder = image_token(question.config)
    return Media(
        span=(placeholder,),
        inputs={
            "pixel_values": pixels(*shape, most, 3, tile, tile),
            "aspect_ratio_ids": torch.full(shape, number),
            "aspect_ratio_mask": mask.expand(*shape, most).clone(),
        },
        placeholder=placeholder,
        rule=f"one token; {most} tiles of {tile} pixels are encoded, {down * across} of them filled "
        "(image_processing_mllama.py)",
        height=down * tile,
        width=across * tile,
    )


def internvl(question: Question) -> Media:
    """InternVL: up to 12 tiles and a thumbnail, `image_seq_length` tokens each.

    Source: transformers `image_processing_got_ocr2.py` `crop_image_to_patches` (`crop_to_patches` is InternVL's default),
    `processing_internvl.py` `replace_image_token`.
    """
    config, vision = question.config, question.vision
    tile, patch = side_of(vision.image_size), side_of(vision.patch_size)
    tokens = int((tile // patch) ** 2 * config.downsample_ratio**2)
    fewest, most = int(question.option("min_patches", 1)), int(question.option("max_patches", 12))
    side = tile * math.isqrt(most)
    height, width = question.height or side, question.width or side
    across, down = closest_grid(height, width, tile, fewest, most)
    if not question.option("crop_to_patches", True):
        across = down = 1
    count = across * down + (1 if across * down > 1 else 0)
    placeholder = image_token(config)
    return Media(
        span=(SEPARATOR, *(placeholder,) * (tokens * count), SEPARATOR),
        inputs={"pixel_values": pixels(question.total * count, 3, tile, tile)},
        placeholder=placeholder,
        rule=f"{count} tiles of {tile} pixels, {tokens} tokens each (processing_internvl.py)",
        height=height,
        width=width,
    )


IDEFICS3_TILES_A_SIDE = 4
"""transformers `image_processing_idefics3.py`, `image_processing_smolvlm.py`: `size` is 4 times `max_image_size`."""


def idefics3(question: Question) -> Media:
    """Idefics3 and SmolVLM: the longer side of every image is resized to `size` and cut into tiles of the tower's size;
    one more tile shows the whole image.

    Source: transformers `image_processing_smolvlm.py` `get_resize_output_image_size`, `resize_for_vision_encoder`,
    `split_images`; `processing_smolvlm.py` `_prompt_split_image`.
    """
    config, vision = question.config, question.vision
    tile = side_of(question.option("max_image_size", None) or vision.image_size)
    longest = side_of(question.option("size", None) or IDEFICS3_TILES_A_SIDE * tile)
    height, width = question.height or longest, question.width or longest
    scale = longest / max(height, width)
    down, across = math.ceil(int(height * scale) / tile), math.ceil(int(width * scale) / tile)
    if not question.option("do_image_splitting", True):
        down = across = 1
    tokens = (int(vision.image_size) // int(vision.patch_size)) ** 2 // int(config.scale_factor) ** 2
    lines = tile // int(vision.patch_size)
    placeholder = image_token(config)
    tiled = (SEPARATOR, SEPARATOR, *(placeholder,) * tokens)
    split = (*tiled * across, SEPARATOR) * down + (SEPARATOR,) if down * across > 1 else ()
    count = down * across + (1 if down * across > 1 else 0)
    shape = (question.rows, question.per_row * count)
    return Media(
        span=(*split, *tiled, SEPARATOR),
        inputs={
            "pixel_values": pixels(*shape, 3, tile, tile),
            "pixel_attention_mask": pixels(*shape, tile, tile, dtype=torch.int64),
        },
        placeholder=placeholder,
        num_true={
            (question.total * count,): question.total * count,  # tiles that are not all black
            (question.total * count, lines, lines): question.total * count * lines**2,  # patches that are not padding
        },
        rule=f"{count} tiles of {tile} pixels, {tokens} tokens each (processing_smolvlm.py)",
        height=down * tile,
        width=across * tile,
    )
