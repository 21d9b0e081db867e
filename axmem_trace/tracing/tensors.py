"""Tensors in nested values, and the part of a divided tensor that is on this rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor in this one. For a tensor that is sharded across ranks (a DTensor), that is this rank's part.
    For the result of a collective that has not been waited for (an `AsyncCollectiveTensor`), it is the result's buffer.
    Any other tensor is returned as it is."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part.elem if isinstance(part, AsyncCollectiveTensor) else part


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested mappings, lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
