"""Normalisation as on a GPU: `rms_norm` as one kernel that keeps one value per row, and partial weight gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.card import num_sms
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()

_MANY_ROWS, _ROWS, _COLUMNS, _MAX_GRID = 64 * 1024, 32, 32, 64 * 1024 // 2


@RULES.function(F.rms_norm, torch.rms_norm)
def rms_norm(
    context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Runs the fused kernel, unless weight and input differ in dtype. Meta has no such kernel, only several operators.

    Source: torch 2.13, aten/src/ATen/native/layer_norm.cpp, `rms_norm_symint`.
    """
    tensor, shape, weight = _bind(*args, **kwargs)
    if not tensor.is_meta or (weight is not None and weight.dtype != tensor.dtype):
        return call_original(function, args, kwargs)
    return FusedRmsNorm.apply(tensor, weight, math.prod(shape), num_sms(context), context)


def _bind(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> tuple[torch.Tensor, Sequence[int], torch.Tensor | None]:
    return input, normalized_shape, weight


class FusedRmsNorm(torch.autograd.Function):
    """`_fused_rms_norm` and its backward. It keeps input, weight, and for each row the reciprocal of the norm in the
    accumulation type.

    Source: derivatives.yaml, `_fused_rms_norm`; aten/src/ATen/native/cuda/layer_norm_kernel.cu, `_fused_rms_norm_cuda`,
    `_fused_rms_norm_backward_cuda`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, width: int, sms: int, context: KernelContext
    ) -> torch.Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        accumulated = torch.float64 if x.dtype is torch.float64 else torch.float32
        rstd = torch.empty(x.numel() // width, dtype=accumulated, device=x.device)
        ctx.save_for_backward(x, weight, rstd)
        ctx.width, ctx.sms, ctx.context = width, sms, context
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
        dweight = torch.empty_like(weight) if needs_weight else None
        if dweight is not None:
            ctx.context.recorder.workspace(
                partial_gradient_bytes(x.numel() // ctx.width, ctx.width, weight.element_size(), ctx.sms, 1),
                "_fused_rms_norm_backward",
            )
        return dx, dweight, None, None, None


@RULES.workspace(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """Partial gradients of weight and bias. Source: layer_norm_kernel.cu, `layer_norm_backward_cuda`."""
    width = math.prod(args[2])
    gradients = [tensor for tensor in result[1:] if tensor is not None]
    if not gradients or not args[1].numel():
        return []
    rows, itemsize = args[1].numel() // width, gradients[0].element_size()
    return partial_gradient_bytes(rows, width, itemsize, num_sms(context), len(gradients))


def partial_gradient_bytes(rows: int, width: int, itemsize: int, sms: int, gradients: int) -> list[int]:
    """The temporary memory for a large number of narrow rows (norms of heads): sums of 32 rows each. A second pass adds them
    into new tensors.

    Source: layer_norm_kernel.cu, `LaunchGammaBetaBackwardCUDAKernel`. The compiled function in the CUDA 13 wheel of torch
    2.13 has the same limits.
    """
    if rows <= _MANY_ROWS or width // _COLUMNS >= sms // 2:
        return []
    blocks = min(_MAX_GRID // -(-width // _COLUMNS), -(-rows // _ROWS))
    return [blocks * width * itemsize] * gradients + [width * itemsize] * gradients
