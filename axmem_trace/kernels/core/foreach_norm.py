"""The norms of many tensors in one kernel, which gradient clipping uses on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

RULES = Rules()

_CHUNK_ELEMENTS = 65536
"""`kChunkSize` (aten/src/ATen/native/cuda/ForeachFunctors.cuh and MultiTensorApply.cuh): elements for one block."""

aten = torch.ops.aten


def foreach_norm_workspace(tensors: list[torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of the partial norms in CUDA's multi-tensor norm.

    Source: aten/src/ATen/native/cuda/ForeachReduceOp.cu, `foreach_tensor_norm_cuda`. For each tensor, `output_per_tensor`
    has as many elements as the *largest* tensor has chunks. Their dtype is the accumulation type (fp32 for half types).
    """
    chunks = max((-(-tensor.numel() // _CHUNK_ELEMENTS) for tensor in tensors), default=0)
    result = dtype or tensors[0].dtype
    itemsize = 8 if result in (torch.float64, torch.complex128) else 4
    return len(tensors) * chunks * itemsize


@RULES.workspace(aten._foreach_norm.Scalar)
def foreach_norm(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """`torch._foreach_norm` on CUDA; see `foreach_norm_workspace`."""
    dtype = kwargs.get("dtype") or (args[2] if len(args) > 2 else None)
    return foreach_norm_workspace(args[0], dtype)
