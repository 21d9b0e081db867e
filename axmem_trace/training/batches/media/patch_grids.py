"""Families that keep an image's resolution and return a grid of flattened patches."""

from __future__ import annotations

import math
from typing import Any

import torch

from axmem_trace.training.batches.media.types import SEPARATOR, Media, Question, image_token, pixels

QWEN_MIN_PIXELS, QWEN_MAX_PIXELS = 56 * 56, 28 * 28 * 1280
"""transformers `image_processing_qwen2_vl.py`, `Qwen2VLImageProcessor.size`."""
GLM_MIN_PIXELS, GLM_MAX_PIXELS = 112 * 112, 28 * 28 * 15000
"""transformers `image_processing_glm4v.py`, `Glm4vImageProcessor.size`; a still image counts as two frames."""


def qwen_vl(question: Question) -> Media:
    """Qwen2-VL, 2.5-VL, 3-VL, 3.5 and those that share its processor: one token for each merged square of patches."""
    return _patch_grid(question, QWEN_MIN_PIXELS, QWEN_MAX_PIXELS, frames=1, source="image_processing_qwen2_vl.py")


def glm_v(question: Question) -> Media:
    """GLM-4V, 4.1V, 4.5V, 4.6V: as Qwen2-VL, with limits on the pixels of two frames."""
    return _patch_grid(question, GLM_MIN_PIXELS, GLM_MAX_PIXELS, frames=2, source="image_processing_glm4v.py")


def _patch_grid(question: Question, minimum: int, maximum: int, *, frames: int, source: str) -> Media:
    config, vision = question.config, question.vision
    patch = int(vision.patch_size)
    merge = int(getattr(vision, "spatial_merge_size", 2))
    minimum, maximum = _limits(question, minimum, maximum)
    side = math.isqrt(maximum // frames)
    height, width = smart_resize(
        question.height or side, question.width or side, patch * merge, minimum, maximum, frames
    )
    rows, columns = height // patch, width // patch
    tokens = rows * columns // merge**2
    found: Any = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    channels = int(found)
    values = channels * int(getattr(vision, "temporal_patch_size", 2)) * patch**2
    placeholder = image_token(config)
    return Media(
        span=(SEPARATOR, *(placeholder,) * tokens, SEPARATOR),
        inputs={
            "pixel_values": pixels(question.total * rows * columns, values),
            "image_grid_thw": torch.tensor([[1, rows, columns]]).repeat(question.total, 1),
        },
        placeholder=placeholder,
        token_types="mm_token_type_ids",
        rule=f"{height} x {width} pixels in squares of {patch * merge} (`smart_resize`, {source})",
        height=height,
        width=width,
    )


def _limits(question: Question, minimum: int, maximum: int) -> tuple[int, int]:
    """The limits from `size` and `min_pixels` / `max_pixels` of `processor_kwargs`, in the order in which the processor
    reads them."""
    size: Any = question.option("size", {})
    minimum = int(question.option("min_pixels", size.get("shortest_edge") or minimum))
    return minimum, int(question.option("max_pixels", size.get("longest_edge") or maximum))


def smart_resize(height: int, width: int, factor: int, minimum: int, maximum: int, frames: int = 1) -> tuple[int, int]:
    """Resizes both sides to multiples of `factor`, so that `frames` times their product is between the limits.

    Source: transformers `image_processing_qwen2_vl.py`, `image_processing_glm4v.py`: `smart_resize`.
    """
    new_height, new_width = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    area = frames * height * width
    if frames * new_height * new_width > maximum:
        scale = math.sqrt(area / maximum)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif frames * new_height * new_width < minimum:
        scale = math.sqrt(minimum / area)
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width
