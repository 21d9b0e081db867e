"""LLaVA-NeXT and LLaVA-OneVision: a grid of tiles without padding, a newline token per line, and the whole image."""

from __future__ import annotations

import math

import torch

from axmem_trace.training.batches.media.tile_choice import best_resolution
from axmem_trace.training.batches.media.types import Media, Question, image_token, pixels, side_of

ONEVISION_MOST_TILES = 9
"""transformers `processing_llava_onevision.py`: `vision_aspect_ratio` is `anyres_max_9`."""


def llava_next(question: Question) -> Media:
    """Source: transformers `processing_llava_next.py`, `_get_number_of_features`, `_get_unpadded_features`."""
    tokens = (side_of(question.vision.image_size) // int(question.vision.patch_size)) ** 2
    return _any_resolution(question, tokens, most_tiles=0)


def llava_onevision(question: Question) -> Media:
    """As LLaVA-NeXT, but more than nine tiles are interpolated to a smaller size. If a row has several images, each is
    one tile.

    Source: transformers `processing_llava_onevision.py`, `expand_image_tokens`, `_get_unpadded_features`.
    """
    tokens = (side_of(question.vision.image_size) // int(question.vision.patch_size)) ** 2
    if question.per_row == 1:
        media = _any_resolution(question, tokens, most_tiles=ONEVISION_MOST_TILES)
        media.inputs["batch_num_images"] = torch.ones(question.rows, dtype=torch.int64)
        return media
    side, placeholder = side_of(question.vision.image_size), image_token(question.config)
    height, width = question.height or side, question.width or side
    return Media(
        span=(placeholder,) * (tokens + 1),
        inputs={
            "pixel_values": pixels(question.total, 1, 3, side, side),
            "image_sizes": torch.tensor([[height, width]]).repeat(question.total, 1),
            "batch_num_images": torch.full((question.rows,), question.per_row),
        },
        placeholder=placeholder,
        rule=f"{tokens} patches and a newline, one tile for each of several images (processing_llava_onevision.py)",
        height=height,
        width=width,
    )


def _any_resolution(question: Question, tokens: int, *, most_tiles: int) -> Media:
    config, tile = question.config, side_of(question.vision.image_size)
    pinpoints = [(int(height), int(width)) for height, width in config.image_grid_pinpoints]
    largest = max((height for height, width in pinpoints if height == width), default=tile)
    height, width = question.height or largest, question.width or largest
    target_height, target_width = best_resolution(height, width, pinpoints)
    down, across = target_height // tile, target_width // tile
    lines, columns = _unpadded(height, width, math.isqrt(tokens) * down, math.isqrt(tokens) * across)
    ratio = math.sqrt(lines * columns / (most_tiles * tokens)) if most_tiles else 0.0
    if ratio > 1.1:
        lines, columns = int(lines // ratio), int(columns // ratio)
    placeholder = image_token(config)
    return Media(
        span=(placeholder,) * (lines * (columns + 1) + tokens),
        inputs={
            "pixel_values": pixels(question.total, down * across + 1, 3, tile, tile),
            "image_sizes": torch.tensor([[height, width]]).repeat(question.total, 1),
        },
        placeholder=placeholder,
        rule=f"{down} x {across} tiles of {tile} pixels and the whole: {lines} lines of {columns} patches and a newline, "
        f"and {tokens} (processing_llava_next.py)",
        height=height,
        width=width,
    )


def _unpadded(height: int, width: int, lines: int, columns: int) -> tuple[int, int]:
    """The lines and columns of patches that contain a part of the image, if the image does not fill the grid."""
    if width / height > columns / lines:
        kept = int(round(height * (columns / width), 7))
        return lines - (lines - kept) // 2 * 2, columns
    kept = int(round(width * (lines / height), 7))
    return lines, columns - (columns - kept) // 2 * 2
