"""ScatterMoE with LoRA on the experts' fused weights: the frozen weights are not merged with the adapter.

Source: axolotl 0.19, `integrations/kernels/libs/scattermoe_lora/`: `parallel_linear_lora.py` (`ScatterMoELoRA`,
`_compute_lora_input_grad`), `kernels/lora_ops.py` (`scatter2scatter_lora`, `_scatter2scatter_lora_split`),
`kernels/grouped_gram.py` (`grouped_lora_weight_grads`), `layers.py` (`peft_lora_B_to_scattermoe`). Neither the fused
input gradient nor the fused gather is switched on there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from axmem_trace.kernels.experts.scattered import (
    Routed,
    gather_rows,
    in_dtype_of,
    scatter,
    summed_by_token,
    unsummed,
)

SPLIT_FROM_WEIGHTS = 20_000_000
SPLIT_UP_TO_EXPERTS = 32
"""A few experts with many weights each (Mixtral) use three matmuls instead of the fused one."""


class Adapter(NamedTuple):
    """A [experts * rank, in], B [out, experts * rank]."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float


def by_expert(lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, num_experts: int) -> Adapter:
    """Converts from peft's layout, in which B's columns are ordered by rank and then by expert. This copies B."""
    rows, rank = lora_b.shape[0], lora_a.shape[0] // num_experts
    ordered = lora_b.reshape(rows, rank, num_experts).permute(0, 2, 1).contiguous()
    return Adapter(lora_a, ordered.reshape(rows, num_experts * rank), scaling)


class ScatterMoELoRA(torch.autograd.Function):
    """Keeps x, A, B, the routing, and with gates all rows before the sum. It keeps the weights only if they are no temporary
    copy."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        k: int,
        routed: Routed,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
        bias: torch.Tensor | None,
        gates: torch.Tensor | None,
        grouped_in: bool,
        remake: Callable[[], torch.Tensor] | None,
    ) -> torch.Tensor:
        weight, bias = in_dtype_of(x, weight), in_dtype_of(x, bias)
        output, expanded = summed_by_token(_forward_product(x, weight, routed, lora_a, lora_b), gates)
        ctx.save_for_backward(x, lora_a, lora_b, *routed, gates, expanded)
        ctx.weight, ctx.bias, ctx.remake = weight if remake is None else None, bias, remake
        ctx.k, ctx.grouped_in, ctx.scaling = k, grouped_in, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, lora_a, lora_b, experts, places, offsets, _, expanded = ctx.saved_tensors
        weight = ctx.weight if ctx.weight is not None else ctx.remake()
        routed, num_experts, (grad,) = Routed(experts, places, offsets), weight.size(0), grad_outputs
        grad, d_gates = unsummed(grad, expanded)
        grouped_x = x if ctx.grouped_in else gather_rows(x, routed)
        rank = lora_a.size(0) // num_experts
        b_by_expert = lora_b.reshape(lora_b.size(0), num_experts, rank).permute(1, 0, 2).contiguous()
        inner_grad = scatter(grad, b_by_expert, routed)
        a_by_expert = lora_a.reshape(num_experts, rank, lora_a.size(1)).permute(0, 2, 1).contiguous()
        inner = scatter(grouped_x, a_by_expert, routed)
        d_lora_a, d_lora_b = torch.empty_like(lora_a), torch.empty_like(lora_b)
        # the input's gradient is written over the sorted copy
        d_rows = scatter(grad, weight.permute(0, 2, 1), routed) if ctx.grouped_in else grouped_x
        if ctx.scaling:
            through_adapter = scatter(inner_grad, lora_a.reshape(num_experts, rank, lora_a.size(1)), routed)
            through_adapter.mul_(ctx.scaling)
            if ctx.grouped_in:
                d_rows.add_(through_adapter)
            else:
                d_rows[places] += through_adapter
        d_x = d_rows if ctx.k == 1 else d_rows.view(x.size(0), ctx.k, d_rows.size(-1)).sum(-2)
        del inner
        return d_x, None, None, None, d_lora_a, d_lora_b, None, None, d_gates, None, None


def _forward_product(
    x: torch.Tensor, weight: torch.Tensor, routed: Routed, lora_a: torch.Tensor, lora_b: torch.Tensor
) -> torch.Tensor:
    num_experts, width, out = weight.shape
    output = scatter(x, weight, routed)
    if num_experts > SPLIT_UP_TO_EXPERTS or width * out < SPLIT_FROM_WEIGHTS:
        return output
    rank = lora_a.size(0) // num_experts
    a_by_expert = lora_a.reshape(num_experts, rank, width).permute(0, 2, 1).contiguous()
    inner = scatter(x, a_by_expert, routed)
    b_by_expert = lora_b.T.reshape(num_experts, rank, out).contiguous()
    return output.add_(scatter(inner, b_by_expert, routed))
