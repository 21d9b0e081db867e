"""Dropout as on a GPU: one kernel that keeps a mask of one byte per element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.function(F.dropout, torch.dropout)
def dropout(context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls `native_dropout` in the cases in which CUDA uses it: in training, out of place, 0 < p < 1.

    Without this rule, meta keeps the noise in the input's dtype. CUDA does that only for dropout in place, and for the
    variants that drop channels or keep the mean (`dropout2d`, `alpha_dropout`).

    Source: aten/src/ATen/native/Dropout.cpp, `dropout`, `is_fused_kernel_acceptable`.
    """
    tensor, p, training, inplace = _bind(*args, **kwargs)
    if inplace or not training or not 0 < p < 1 or not tensor.is_meta or not tensor.numel():
        return call_original(function, args, kwargs)
    return aten.native_dropout(tensor, p, True)[0]


def _bind(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, train: bool | None = None
) -> tuple[torch.Tensor, float, bool, bool]:
    return input, p, training if train is None else train, inplace


@RULES.dispatch(aten.native_dropout.default)
def fused_dropout(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An output like the input, and a boolean mask. Source: aten/src/ATen/native/cuda/Dropout.cu, `dropout_cuda`."""
    tensor = args[0]
    return torch.empty_like(tensor), torch.empty_like(tensor, dtype=torch.bool)
