"""The memory layouts that the kernels of this package need. An input with another layout is copied."""

from __future__ import annotations

import torch


def last_dim_dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if its last dimension is strided, as in the kernels' host code."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dense_along(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
    """The tensor, or a copy if none of these dimensions has stride 1."""
    return tensor if any(tensor.stride(dim) == 1 for dim in dims) else tensor.contiguous()


def dense_or_none(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, or a contiguous copy if it is strided; None stays None."""
    return None if tensor is None else tensor.contiguous()


def fp32(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """An fp32 block of this shape, not initialised, on the device of `like`."""
    return like.new_empty(shape, dtype=torch.float32)


def num_chunks(length: int, chunk: int) -> int:
    """The number of pieces of size `chunk` in `length`; the last one may be partly filled."""
    return -(-length // chunk)


def is_packed(weight: torch.Tensor | None) -> bool:
    """True if bitsandbytes has quantised this weight, in any storage dtype."""
    return weight is not None and (not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None)
