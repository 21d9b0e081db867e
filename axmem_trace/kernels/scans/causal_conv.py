"""causal-conv1d's depthwise convolution: it keeps only its input; `F.conv1d` with padding keeps three tensors.

Source: causal-conv1d 1.7.0 `causal_conv1d_interface.py` (`CausalConv1dFn`), `cpp_functions.py`, and
`csrc/causal_conv1d.cpp`, which allocates no workspace (except under `torch.use_deterministic_algorithms`, which
axolotl does not use).
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.scans.layouts import dense_along


class CausalConv1d(torch.autograd.Function):
    """Keeps the convolution's input, weight, bias and `seq_idx`. The activation is part of the kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
    ) -> torch.Tensor:
        x = dense_along(x, 2, 1)
        bias = None if bias is None else bias.contiguous()
        seq_idx = None if seq_idx is None else seq_idx.contiguous()
        ctx.save_for_backward(x, weight, bias, seq_idx)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, weight, bias, _ = ctx.saved_tensors
        grad_out = dense_along(grad_outputs[0], 2, 1)
        return *conv_gradients(x, weight, bias, grad_out), None


def conv_gradients(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grad_out: torch.Tensor,
    x_grad: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of `causal_conv1d_bwd_function`: the weight's and bias's are summed in fp32 and then cast.

    Args:
        grad_out: alive while the kernel runs.
        x_grad: memory that the caller has allocated for the input's gradient.
    """
    x_grad = torch.empty_like(x) if x_grad is None else x_grad
    weight_grad = torch.empty_like(weight, dtype=torch.float32)
    bias_grad = None if bias is None else torch.empty_like(bias, dtype=torch.float32)
    weight_grad = weight_grad.type_as(weight)
    return x_grad, weight_grad, None if bias_grad is None else bias_grad.type_as(weight)


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Same as `causal_conv1d.causal_conv1d_fn`. Training passes neither initial nor final states."""
    out: torch.Tensor = CausalConv1d.apply(x, weight, bias, seq_idx)
    return out
