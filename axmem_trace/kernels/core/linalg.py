"""Decompositions: cuSOLVER overwrites its input matrix, so it gets a copy."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.workspace(aten._linalg_svd.default)
def svd_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """A column-major copy of the matrix and one status word for each of a batch.

    Source: BatchLinearAlgebra.cpp `_linalg_svd_out` (`info`), cuda/linalg/BatchLinearAlgebraLib.cpp `svd_cusolver`
    (`cloneBatchedColumnMajor`). The result of `cusolverDnSgesvdj_bufferSize` is not published, and not counted.
    """
    matrix = args[0]
    batch = matrix.shape[:-2].numel()
    return [matrix.numel() * matrix.element_size(), 4 * batch]
