"""A mean whose backward keeps its input, as in PyTorch before 2.2: `--assume mean_keeps_input=true`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

RULES = Rules()


@RULES.function(torch.mean, torch.Tensor.mean)
def mean(context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Keeps the whole input, although only its number of elements is needed. In an RMSNorm that is a second fp32 copy.

    Source: torch 2.1 `MeanBackward1` has `_saved_self`: `mean_backward` in `derivatives.yaml` needs
    `self.sym_numel()`, and code generation saved the tensor for it. From 2.2 on it has `_saved_self_sym_numel`.
    """
    result = call_original(function, args, kwargs)
    averaged = args[0] if args else kwargs["input"]
    if not context.mean_keeps_input or not result.requires_grad:
        return result
    return _Kept.apply(result, averaged)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, averaged: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(averaged)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return grad_output, None
