"""Temporary memory of CUDA's reductions if several blocks compute one output (Reduce.cuh)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from axmem_trace.kernels.card import HALF, sms_of
from axmem_trace.recipe.watched_gpu import ask
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()

_MAX_THREADS, _MIN_VALUES, _MAX_VALUES, _WARP = 512, 16, 256, 32
_THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""`maxThreadsPerMultiProcessor` (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"); 2048
on the data-centre cards 7.0, 8.0, 9.0, 10.0 and 10.3."""
_Dims = tuple[tuple[int, int], ...]
"""(Size, stride) of dimensions, in elements. The dimension with the smallest stride comes first."""


@dataclass(frozen=True, slots=True)
class _Threads:
    """The properties of a card that decide how a reduction is divided into blocks."""

    num_sms: int
    threads_per_sm: int


@RULES.workspace(aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default)
def sum_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Partial sums, and for integers and bools a copy in the dtype of the result.

    Source: ReduceOps.cpp, `make_reduction` (the kernel itself converts half to fp32; for other types there is a copy);
    ReduceSumProdKernel.cu, ReduceMomentKernel.cu: partial sums are in the accumulation type, fp32 for half types.
    """
    tensor = args[0]
    converts = tensor.dtype != result.dtype and not (tensor.dtype in HALF and result.dtype is torch.float32)
    copies = [tensor.numel() * result.element_size()] if converts else []
    accumulated = 8 if result.dtype in (torch.float64, torch.int64) else 4
    return copies + _partial(context, tensor, _dims(args), accumulated)


@RULES.workspace(aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction)
def moments_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Mean, second moment and two counts of 4 bytes. Source: ReduceMomentKernel.cu, `WelfordData<float, int32_t>`."""
    return _partial(context, args[0], _dims(args), 16)


@RULES.workspace(aten.linalg_vector_norm.default)
def norm_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Source: ReduceNormKernel.cu, `norm_kernel_cuda_impl`: fp32 for half types."""
    dims = args[2] if len(args) > 2 else kwargs.get("dim")
    return _partial(context, args[0], dims, 8 if args[0].dtype is torch.float64 else 4)


@RULES.workspace(aten.logsumexp.default)
def logsumexp_workspace(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """The maxima, and a tensor like the input for the exponentials.

    Source: aten/src/ATen/native/ReduceOps.cpp, `logsumexp_out_impl`: `sum_out(result, (self - maxes).exp_(), dims)`.
    """
    return [result.numel() * result.element_size(), args[0].numel() * args[0].element_size()]


def _dims(args: tuple[Any, ...]) -> Sequence[int] | None:
    """The reduced dimensions; None: all of them."""
    dims = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else None
    return dims or None


def _partial(context: KernelContext, tensor: torch.Tensor, dims: Sequence[int] | None, itemsize: int) -> list[int]:
    if not tensor.numel():
        return []
    reduced = range(tensor.dim()) if dims is None else dims
    kept = frozenset(range(tensor.dim())) - {dim % tensor.dim() for dim in reduced}
    shape = (tuple(tensor.shape), tensor.stride(), kept, itemsize)
    return list(ask(context.compute_capability, _partial_on_card, context.num_sms, *shape))


def _partial_on_card(
    capability: tuple[int, int],
    num_sms: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    kept: frozenset[int],
    itemsize: int,
) -> tuple[int, ...]:
    """`partial_result_bytes` for a card. `num_sms` 0 means the multiprocessors of the usual card of this generation."""
    card = _Threads(num_sms or sms_of(capability), _THREADS_PER_SM.get(capability, 2048))
    return partial_result_bytes(shape, strides, kept, itemsize, card)


@lru_cache(maxsize=4096)
def partial_result_bytes(
    shape: tuple[int, ...], strides: tuple[int, ...], kept: frozenset[int], itemsize: int, card: _Threads
) -> tuple[int, ...]:
    """Bytes of the partial results and of the counters of blocks; empty if one block computes each output.

    `global_memory_size` also multiplies by the width of a block, so more is allocated for partial results than is used.

    Source: torch 2.13, torch/include/ATen/native/cuda/Reduce.cuh, `setReduceConfig`,
    `ReduceConfig::global_memory_size`, `semaphore_size`.

    Args:
        kept: the dimensions that are not reduced.
        itemsize: bytes of one partial result.
    """
    reduced = _coalesce([(shape[dim], strides[dim]) for dim in range(len(shape)) if dim not in kept])
    outputs = _coalesce([(shape[dim], strides[dim]) for dim in kept])
    num_inputs, num_outputs = _count(reduced), _count(outputs)
    on_fastest = not outputs or (bool(reduced) and reduced[0][1] < outputs[0][1])
    width, height, vector = _block(reduced, outputs, on_fastest)
    step_input, step_output = (width, 1) if on_fastest else (1, width)
    splits_warps = -(-num_inputs // step_input) >= min(height * 16, _MAX_VALUES)
    if splits_warps:
        step_input *= height
    else:
        step_output *= height
    values = -(-num_inputs // step_input)
    grid = -(-(num_outputs // vector) // step_output)
    target = card.num_sms * (card.threads_per_sm // (width * height))
    if not splits_warps or values < _MAX_VALUES or grid > target:
        return ()
    blocks = max(min(-(-target // grid), -(-values // _MIN_VALUES)), -(-values // _MAX_VALUES))
    if blocks <= 1:
        return ()
    across = 1 if on_fastest else width * vector
    return itemsize * num_outputs * blocks * across, 4 * grid


def _block(reduced: _Dims, outputs: _Dims, on_fastest: bool) -> tuple[int, int, int]:
    """The threads of a block along the fastest dimension and across it, and the number of outputs that one thread loads at
    once."""
    dim0, dim1 = (_count(reduced), _count(outputs)) if on_fastest else (_count(outputs), _count(reduced))
    fastest = (reduced if on_fastest else outputs)[:1] or ((1, 1),)
    vector = 1
    if fastest[0][1] == 1:
        if on_fastest and dim0 >= 128 and len(reduced) == 1:
            dim0 //= 4
        elif not on_fastest:
            vector = _output_vector(reduced, outputs)
            dim0 //= vector
    threads = _MAX_THREADS // vector
    most0, most1 = (min(_last_power_of_two(dim), threads) for dim in (dim0, dim1))
    height = min(most1, threads // min(most0, _WARP))
    return min(most0, threads // height), height, vector


def _output_vector(reduced: _Dims, outputs: _Dims) -> int:
    """`get_output_vec_size`: the largest of 4, 2 and 1 that divides sizes and strides."""
    vector = 4
    for number in (outputs[0][0], *(stride for _, stride in (*reduced, *outputs[1:]))):
        while number % vector:
            vector //= 2
    return vector


def _coalesce(dims: list[tuple[int, int]]) -> _Dims:
    """Sorts dimensions by stride, and merges those that are adjacent in memory (TensorIterator.cpp, `reorder_dimensions`,
    `coalesce_dimensions`)."""
    merged: list[tuple[int, int]] = []
    for size, stride in sorted((dim for dim in dims if dim[0] != 1), key=lambda dim: dim[1]):
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = merged[-1][0] * size, merged[-1][1]
        else:
            merged.append((size, stride))
    return tuple(merged)


def _count(dims: _Dims) -> int:
    count = 1
    for size, _ in dims:
        count *= size
    return count


def _last_power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)
