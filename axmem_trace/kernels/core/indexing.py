"""Temporary memory of indexing, masking and sorting on a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()

_INDEX_BYTES = 8


@RULES.workspace(aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
def index_put(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Temporary memory of `index_put`.

    With `accumulate` (the gradient of indexing) it sorts the indices. It allocates linear indices, sorted indices, their
    original positions, a range, all int64, and the sort's second pair of keys and values. Plain assignment only needs the
    positions of a mask's true elements. Assignment of one value needs nothing (`masked_fill`).

    Source: aten/src/ATen/native/cuda/Indexing.cu, `index_put_with_sort_kernel`; cub `DeviceRadixSort::SortPairs`, which
    keeps its input and therefore sorts between two further pairs of buffers.
    """
    values = args[2]
    indices = [index for index in args[1] if index is not None]
    if not values.dim() or not indices:
        return []
    places = [size for index in indices for size in _places(index, values.shape[0])]
    if not (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
        return places
    shape = [values.shape[:1]] if places else [index.shape for index in indices]
    count = math.prod(torch.broadcast_shapes(*shape))
    return [*places, *[count * _INDEX_BYTES] * 4, 2 * count * _INDEX_BYTES]


@RULES.workspace(aten.index.Tensor)
def index(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """A boolean mask is converted to the positions of its true elements: one int64 for each element and dimension.

    Source: aten/src/ATen/native/IndexingUtils.h, `expandTensors`; cuda/Nonzero.cu.
    """
    return [
        size
        for position, index in enumerate(args[1])
        if index is not None and position < result.dim()
        for size in _places(index, result.shape[position])
    ]


@RULES.workspace(aten.masked_select.default)
def masked_select(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """The same as indexing with the mask, expanded to the input's shape. Source: cuda/IndexKernel.cpp,
    `masked_select_out_cuda_impl`."""
    dims = max(args[0].dim(), args[1].dim())
    expanded = args[0].numel() if args[1].numel() < args[0].numel() else 0
    return [expanded, result.numel() * dims * _INDEX_BYTES]


@RULES.workspace(aten.masked_scatter.default, aten.masked_scatter_.default)
def masked_scatter(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """For each element, the number of masked elements before it, as int64; and the mask, if it must be expanded.

    Source: aten/src/ATen/native/cuda/IndexKernel.cpp, `masked_scatter_cuda_impl` (`mask_cont`, `maskPrefixSum`).
    """
    mask, count = args[1], args[0].numel()
    dense = mask.numel() == count and mask.is_contiguous()
    return [0 if dense else count, count * _INDEX_BYTES]


@RULES.workspace(aten.sort.default, aten.sort.stable, aten.argsort.default)
def sort(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """A range of int64, and the sort's second pair of keys and values, for a small number of long rows.

    Source: aten/src/ATen/native/cuda/SortStable.cu, `segmented_sort_large_segments`; rows of up to 4096 elements are
    sorted within a block (Sort.cpp, `should_use_small_sort`).
    """
    tensor = args[0]
    dim = next((each for each in args[1:] if type(each) is int), kwargs.get("dim", -1))
    length = tensor.shape[dim] if tensor.dim() else 1
    if length <= 4096:
        return []
    return [length * _INDEX_BYTES, length * (_INDEX_BYTES + tensor.element_size())]


def _places(index: torch.Tensor, count: int) -> list[int]:
    """Bytes of the result of `nonzero` for a mask with this many true elements; nothing for integer indices."""
    return [count * index.dim() * _INDEX_BYTES] if index.dtype in (torch.bool, torch.uint8) else []
