"""Indexing by a boolean mask: how many elements it picks decides the result's shape, which meta cannot know."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.tracing.known_values import KnownValues

aten = torch.ops.aten

INDEXES = frozenset({aten.index.Tensor})
"""Operators that read through a list of indices, their second argument."""
_BYTES_OF_INDEX = 8


def picked_indices(values: KnownValues, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], int] | None:
    """The arguments with integer indices instead of boolean masks whose values are known, and the bytes of the indices.

    `tensor[mask]` is `tensor[mask.nonzero().unbind(1)]` (torch aten/src/ATen/native/IndexingUtils.h, `expandTensors`):
    one int64 [picked, dimensions] tensor, alive while the operator runs. Only the number of picked elements is needed;
    it is computed also for a mask that is a view, expanded over the hidden size.
    """
    source, indices = args[0], args[1]
    if not source.is_meta or not any(_is_mask(index) for index in indices):
        return None
    replaced: list[torch.Tensor | None] = []
    nbytes = 0
    for index in indices:
        if not _is_mask(index):
            replaced.append(index)
            continue
        value = values.value_of(index)
        picked = values.num_true.get(tuple(index.shape)) if value is None else int(torch.count_nonzero(value))
        if picked is None:
            return None
        nbytes += picked * index.ndim * _BYTES_OF_INDEX
        replaced += [torch.empty(picked, dtype=torch.int64, device="meta") for _ in range(index.ndim)]
    return (source, replaced, *args[2:]), nbytes


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
