"""Families whose vision tower accepts an image in about its original size and shape: Pixtral, Mistral 3, Gemma 4,
LFM2-VL."""

from __future__ import annotations

import math

import torch

from axmem_trace.training.batches.media.tile_choice import closest_grid
from axmem_trace.training.batches.media.types import SEPARATOR, Media, Question, image_token, pixels, side_of


def pixtral(question: Question) -> Media:
    """Pixtral and Mistral 3: a token for each patch (or merged square of patches), and one token after each line of
    patches.

    Source: transformers `image_processing_pixtral.py` `get_resize_output_image_size`, `processing_pixtral.py`
    `replace_image_token`; mistral-common counts the same.
    """
    config, vision = question.config, question.vision
    patch = int(vision.patch_size) * int(getattr(config, "spatial_merge_size", 1))
    longest = side_of(question.option("size", None) or vision.image_size)
    height, width = question.height or longest, question.width or longest
    ratio = max(height / longest, width / longest)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    lines, columns = (height - 1) // patch + 1, (width - 1) // patch + 1
    placeholder = image_token(config)
    return Media(
        span=(*(placeholder,) * columns, SEPARATOR) * lines,
        inputs={
            "pixel_values": pixels(question.total, 3, lines * patch, columns * patch),
            "image_sizes": torch.tensor([[lines * patch, columns * patch]]).repeat(question.total, 1),
        },
        placeholder=placeholder,
        rule=f"{lines} lines of {columns} squares of {patch} pixels (processing_pixtral.py)",
        height=lines * patch,
        width=columns * patch,
    )


GEMMA4_SOFT_TOKENS = 280
"""transformers `image_processing_gemma4.py`, `Gemma4ImageProcessor.max_soft_tokens`."""


def gemma4(question: Question) -> Media:
    """Gemma 4: every image is resized to about `max_soft_tokens` squares of pooled patches, and padded to that number."""
    vision = question.vision
    most = _soft_tokens(question)
    lines, columns = _gemma4_grid(question, most)
    pool, patch = int(vision.pooling_kernel_size), int(vision.patch_size)
    positions = _padded_positions(lines * pool, columns * pool, most * pool**2)
    return _gemma4_media(question, lines, columns, positions, values=3 * patch**2)


def gemma4_unified(question: Question) -> Media:
    """Gemma 4 without a tower: the pooled squares themselves are the patches.

    Source: transformers `image_processing_gemma4_unified.py`, `_preprocess`.
    """
    vision = question.vision
    most = _soft_tokens(question)
    lines, columns = _gemma4_grid(question, most)
    square = int(vision.pooling_kernel_size) * int(vision.patch_size)
    return _gemma4_media(question, lines, columns, _padded_positions(lines, columns, most), values=3 * square**2)


def _soft_tokens(question: Question) -> int:
    return int(question.option("max_soft_tokens", GEMMA4_SOFT_TOKENS))


def _gemma4_grid(question: Question, most: int) -> tuple[int, int]:
    """Source: transformers `image_processing_gemma4.py`, `get_aspect_ratio_preserving_size`."""
    square = int(question.vision.pooling_kernel_size) * int(question.vision.patch_size)
    height, width = question.height or square, question.width or square
    scale = math.sqrt(most * square**2 / (height * width))
    lines, columns = math.floor(scale * height / square), math.floor(scale * width / square)
    if not lines:
        return 1, min(width // height, most)
    return (lines, columns) if columns else (min(height // width, most), 1)


def _padded_positions(lines: int, columns: int, length: int) -> torch.Tensor:
    """(x, y) of each patch, line after line; -1 for padding."""
    grid = torch.cartesian_prod(torch.arange(lines), torch.arange(columns)).reshape(-1, 2).flip(-1)
    return torch.cat([grid, torch.full((length - len(grid), 2), -1)])


def _gemma4_media(question: Question, lines: int, columns: int, positions: torch.Tensor, *, values: int) -> Media:
    square = int(question.vision.pooling_kernel_size) * int(question.vision.patch_size)
    placeholder = image_token(question.config)
    return Media(
        span=(SEPARATOR, *(placeholder,) * (lines * columns), SEPARATOR),
        inputs={
            "pixel_values": pixels(question.total, len(positions), values),
            "image_position_ids": positions.repeat(question.total, 1, 1),
        },
        placeholder=placeholder,
        token_types="mm_token_type_ids",
        num_true={(question.total, _soft_tokens(question)): question.total * lines * columns},  # pooled, not padding
        rule=f"{lines} x {columns} squares of {square} pixels (image_processing_gemma4.py)",
        height=lines * square,
        width=columns * square,
    )


LFM2_TILE, LFM2_MIN_TILES, LFM2_MAX_TILES = 512, 2, 10
LFM2_MIN_TOKENS, LFM2_MAX_TOKENS, LFM2_TOLERANCE = 64, 256, 2.0
"""transformers `image_processing_lfm2_vl.py`, attributes of `Lfm2VlImageProcessor`."""


def lfm2_vl(question: Question) -> Media:
    """LFM2-VL: a small image as it is, or tiles and a thumbnail of a large image. Each is padded to the same number of
    patches.

    Source: transformers `image_processing_lfm2_vl.py` `resize_and_split`, `processing_lfm2_vl.py` `_build_image_tokens`.
    """
    config, patch = question.config, int(question.vision.patch_size)
    square = patch * int(config.downsample_factor)
    tile = int(question.option("tile_size", LFM2_TILE))
    most = int(question.option("max_image_tokens", LFM2_MAX_TOKENS))
    largest = int(question.option("max_tiles", LFM2_MAX_TILES))
    side = tile * math.isqrt(largest)
    height, width = question.height or side, question.width or side
    lines, columns = _lfm2_grid(height, width, square, int(question.option("min_image_tokens", LFM2_MIN_TOKENS)), most)
    shapes = [(lines * square // patch, columns * square // patch)]
    area = max(patch, round(height / square) * square) * max(patch, round(width / square) * square)
    if question.option("do_image_splitting", True) and area > most * square**2 * LFM2_TOLERANCE:
        smallest = int(question.option("min_tiles", LFM2_MIN_TILES))
        across, down = closest_grid(height, width, tile, smallest, largest)
        shapes = [(tile // patch, tile // patch)] * (across * down) + (shapes if across * down > 1 else [])
    placeholder = image_token(config)
    span: list[int] = [SEPARATOR]
    for rows, cols in shapes:
        span += [SEPARATOR] * (len(shapes) > 1) + [placeholder] * (rows * patch // square * (cols * patch // square))
    patches = max(most * (square // patch) ** 2, (tile // patch) ** 2)
    mask = torch.stack([torch.arange(patches) < rows * cols for rows, cols in shapes]).to(torch.int32)
    return Media(
        span=(*span, SEPARATOR),
        inputs={
            "pixel_values": pixels(question.total * len(shapes), patches, 3 * patch**2),
            "pixel_attention_mask": mask.repeat(question.total, 1),
            "spatial_shapes": torch.tensor(shapes).repeat(question.total, 1),
        },
        placeholder=placeholder,
        rule=f"{len(shapes)} tiles of at most {tile} pixels (image_processing_lfm2_vl.py)",
        height=height,
        width=width,
    )


def _lfm2_grid(height: int, width: int, square: int, fewest: int, most: int) -> tuple[int, int]:
    """Lines and columns of the thumbnail of the whole image: `smart_resize`."""
    lines, columns = max(1, round(height / square)), max(1, round(width / square))
    if lines * columns > most:
        scale = math.sqrt(height * width / (most * square**2))
        return max(1, math.floor(height / scale / square)), max(1, math.floor(width / scale / square))
    if lines * columns < fewest:
        scale = math.sqrt(fewest * square**2 / (height * width))
        return math.ceil(height * scale / square), math.ceil(width * scale / square)
    return lines, columns
