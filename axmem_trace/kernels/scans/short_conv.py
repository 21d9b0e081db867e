"""flash-linear-attention's short convolution. axolotl uses it for packed samples, because it does not mix samples.

Source: fla-core 0.5.2 `modules/conv/triton/ops.py` (`CausalConv1dFunction`).
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.scans.fla_blocks import Chunks
from axmem_trace.kernels.scans.layouts import fp32
from axmem_trace.tracing.context import KernelContext


class ShortConv(torch.autograd.Function):
    """Keeps its unchanged input. If an activation follows, backward recomputes the convolution. Backward allocates one
    partial sum of the weight's gradient per chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        context: KernelContext,
        activation: str | None,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bounds: torch.Tensor | None,
    ) -> torch.Tensor:
        weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
        chunks = Chunks.of(context, x, bounds)
        ctx.save_for_backward(x, weight, bias)
        ctx.activation, ctx.chunks = activation, chunks
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        x = x.contiguous()
        again = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.activation else None
        x_grad = torch.empty_like(x)
        parts = x.shape[0] * ctx.chunks.count
        weight_grad = fp32(x, parts, *weight.shape)
        bias_grad = None if bias is None else fp32(x, parts, *bias.shape)
        weight_grad = weight_grad.sum(0).to(weight.dtype)
        bias_grad = None if bias_grad is None else bias_grad.sum(0).to(bias.dtype)
        del again
        return None, None, x_grad, weight_grad, bias_grad, None


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: torch.Tensor | None = None,
    *,
    context: KernelContext,
) -> torch.Tensor:
    """Same as `fla.modules.convolution.causal_conv1d`, which takes [batch, length, channels]."""
    out: torch.Tensor = ShortConv.apply(context, activation, x, weight, bias, cu_seqlens)
    return out
