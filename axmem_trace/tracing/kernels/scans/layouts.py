"""What the kernels of this package ask of their inputs' layout, and copy where they do not find it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

Maybe = TypeVar("Maybe", torch.Tensor, "torch.Tensor | None")


def last_dim_dense(tensor: Maybe) -> Maybe:
    """A copy where the last dimension is strided, as the kernels' host code makes it."""
    if tensor is not None and tensor.stride(-1) != 1:
        return tensor.contiguous()
    return tensor


def dense_along(tensor: Maybe, *dims: int) -> Maybe:
    """A copy unless one of these dimensions has stride 1."""
    if tensor is not None and all(tensor.stride(dim) != 1 for dim in dims):
        return tensor.contiguous()
    return tensor


def fp32_block(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """An fp32 block of this shape, not initialised, on the device of `like`."""
    return like.new_empty(shape, dtype=torch.float32)


def num_chunks(length: int, chunk: int) -> int:
    """Pieces of `chunk` in `length`, the last one partly filled."""
    return -(-length // chunk)


def needed(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """`gradients`, with None for each input that asked for none."""
    return tuple(grad if needs else None for grad, needs in zip(gradients, ctx.needs_input_grad, strict=True))
