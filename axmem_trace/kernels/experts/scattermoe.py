"""axolotl's ScatterMoE: one matmul computes all experts from scattered rows. Forward has no sorted copy of the tokens.

Source: axolotl 0.19, `integrations/kernels/libs/scattermoe_lora/`: `experts.py` (`scattermoe_experts_forward`,
`_scattermoe_gptoss_forward`), `parallel_experts.py` (`flatten_sort_count`, `ParallelLinear`) and `kernels/ops.py`
(`scatter2scatter`, `group`, `group_bwd_W`). If a local variable there keeps a tensor alive until the function returns, the
code here does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.kernels.experts.scattered import (
    Routed,
    gather_rows,
    in_dtype_of,
    scatter,
    summed_by_token,
    unsummed,
)
from axmem_trace.kernels.experts.scattermoe_bnb import dequantise_active, select_active
from axmem_trace.kernels.experts.scattermoe_lora import Adapter, ScatterMoELoRA


class Projection(NamedTuple):
    """Weights [experts, in, out] with their bias and adapter.

    `remake` is set if the weights are a temporary copy: the adapter's function does not keep them, and backward computes
    them again with `remake`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    adapter: Adapter | None = None
    remake: Callable[[], torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, k: int, routed: Routed, gates: torch.Tensor | None = None) -> torch.Tensor:
        """Multiplies rows in the order of tokens; the result is sorted by expert. With `gates` the rows are sorted by
        expert, and the result has one sum for each token."""
        grouped_in = gates is not None
        out: torch.Tensor
        if self.adapter is None:
            out = ParallelLinear.apply(x, self.weight, k, routed, self.bias, gates, grouped_in)
        else:
            out = ScatterMoELoRA.apply(
                x,
                self.weight,
                k,
                routed,
                self.adapter.lora_a,
                self.adapter.lora_b,
                self.adapter.scaling,
                self.bias,
                gates,
                grouped_in,
                self.remake,
            )
        return out


class ParallelLinear(torch.autograd.Function):
    """Keeps x, the weights (a copy if their dtype is not x's), the routing, and with gates all rows before the sum.
    Backward computes the weights' gradients even if the weights do not train."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        k: int,
        routed: Routed,
        bias: torch.Tensor | None,
        gates: torch.Tensor | None,
        grouped_in: bool,
    ) -> torch.Tensor:
        weight, bias = in_dtype_of(x, weight), in_dtype_of(x, bias)
        output, expanded = summed_by_token(scatter(x, weight, routed), gates)
        ctx.save_for_backward(x, weight, bias, *routed, gates, expanded)
        ctx.k, ctx.grouped_in = k, grouped_in
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, weight, bias, experts, places, offsets, _, expanded = ctx.saved_tensors
        routed, (grad,) = Routed(experts, places, offsets), grad_outputs
        grad, d_gates = unsummed(grad, expanded)
        grouped_x = x if ctx.grouped_in else gather_rows(x, routed)
        transposed = torch.zeros((weight.size(0), grad.size(-1), x.size(-1)), device=grad.device, dtype=grad.dtype)
        d_weight = transposed.permute(0, 2, 1)
        d_bias = None
        if bias is not None:
            d_bias = torch.zeros((weight.size(0), grad.size(-1)), device=grad.device, dtype=grad.dtype)
        # the input's gradient is written over the sorted copy
        d_rows = grouped_x if not ctx.grouped_in else scatter(grad, weight.permute(0, 2, 1), routed)
        d_x = d_rows if ctx.k == 1 else d_rows.view(x.size(0), ctx.k, d_rows.size(-1)).sum(-2)
        return d_x, d_weight, None, None, d_bias, d_gates, None


def sort_by_expert(index: torch.Tensor, num_experts: int) -> Routed:
    """`flatten_sort_count`: three int64 tensors."""
    with torch.no_grad():
        flat = index.flatten()
        experts, places = torch.sort(flat)
        return Routed(experts, places, torch.bincount(flat, minlength=num_experts).cumsum(-1))


def run_scattermoe(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Replaces `scattermoe_experts_forward`. The module's `handed_adapters` has the adapters of its two weights."""
    gpt_oss = _has_gpt_oss_layout(self)
    if not gpt_oss:
        _refuse_layout(self)
    gates = top_k_weights.to(hidden_states.dtype)
    routed = sort_by_expert(top_k_index, self.num_experts)
    gate_up, down, routed = _projections(self, routed, gpt_oss=gpt_oss)
    rows = gate_up(hidden_states, top_k_index.shape[1], routed)
    inner = _gpt_oss_product(self, rows) if gpt_oss else _product(self, rows)
    return down(inner, 1, routed, gates)


def _projections(module: Any, routed: Routed, *, gpt_oss: bool) -> tuple[Projection, Projection, Routed]:
    adapters: dict[str, Adapter] = getattr(module, "handed_adapters", None) or {}
    names = ("gate_up_proj", "down_proj")
    if all(name in getattr(module, "parametrizations", ()) for name in names):
        active, routed, adapters = select_active(module, routed, adapters)
        made = []
        for name in names:
            remake = partial(_dequantised, module, name, active)
            made.append(Projection(remake(), None, adapters.get(name), remake))
        return made[0], made[1], routed
    weights = [getattr(module, name) for name in names]
    biases = [getattr(module, f"{name}_bias") if gpt_oss else None for name in names]
    if not gpt_oss:
        weights = [weight.transpose(2, 1) for weight in weights]
    gate_up, down = (Projection(*each) for each in zip(weights, biases, map(adapters.get, names), strict=True))
    return gate_up, down, routed


def _dequantised(module: Any, name: str, active: torch.Tensor) -> torch.Tensor:
    return dequantise_active(module, name, active).transpose(2, 1)


def _product(module: Any, rows: torch.Tensor) -> torch.Tensor:
    gate, up = rows.chunk(2, dim=-1)
    limit = getattr(module, "limit", None)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    product: torch.Tensor = module.act_fn(gate) * up
    return product


def _gpt_oss_product(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """`_gptoss_glu`."""
    limit = getattr(module, "limit", 7.0)
    gate, up = rows[..., ::2].clamp(max=limit), rows[..., 1::2].clamp(min=-limit, max=limit)
    glu = gate * torch.sigmoid(gate * getattr(module, "alpha", 1.702))
    return (up + 1) * glu


def _has_gpt_oss_layout(module: Any) -> bool:
    return bool(module.is_transposed and not module.is_concatenated and module.has_bias and module.has_gate)


def _refuse_layout(module: Any) -> None:
    """`_check_supported_layout`."""
    if module.is_transposed or not module.is_concatenated or module.has_bias or not module.has_gate:
        raise ConfigError(
            f"scattermoe does not support the layout of {type(module).__name__}: it needs gate and up one after the other, "
            "not transposed, without biases",
            key="use_scattermoe",
            value=True,
            accepted="`use_sonicmoe: true`, or `experts_implementation: grouped_mm`",
        )
