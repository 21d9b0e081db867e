"""Optimizer states outside the GPU's caching allocator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import _disable_current_modes

from axmem_trace.ledger import Device

_DEVICE = "_axmem_device"


def empty_outside_gpu(shape: Sequence[int], dtype: torch.dtype, device: Device) -> torch.Tensor:
    """A meta tensor that represents managed or host memory. It is not recorded; `device_of` returns its memory."""
    with _disable_current_modes():
        tensor = torch.empty(tuple(shape), dtype=dtype, device="meta")
    setattr(tensor, _DEVICE, device)
    return tensor


def device_of(tensor: torch.Tensor) -> Device:
    """The memory of a state tensor in a real run. A meta tensor represents the GPU unless this module has made it."""
    device: Device = getattr(tensor, _DEVICE, "gpu" if tensor.is_meta else "cpu")
    return device
