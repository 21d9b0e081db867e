"""Liger's fused mixture of experts, which replaces transformers' fused experts with `liger_glu_activation`.

Source: liger-kernel 0.8.1, `liger_kernel/ops/fused_moe.py` (`LigerFusedMoEFunction`, `compute_routing_metadata`),
`transformers/swiglu.py` (`LigerExperts`).
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.liger.losses import next_power_of_2

BLOCK_TOKENS = 64
"""`BLOCK_M_TOKEN`: the tokens of one expert in one tile."""


class FusedExperts(torch.autograd.Function):
    """Keeps x, both weights, the routing, and for every routed token gate and up before the activation.

    For each routed token, forward allocates gate-up [2 * intermediate], the activation [intermediate] and the output
    [hidden]. Then it sums the outputs. Backward computes the weights' gradients even if the weights do not train.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, index: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        (tokens, width), (_, top_k) = x.shape, index.shape
        routed, intermediate = tokens * top_k, gate_up.shape[1] // 2
        routing = _route(index, num_experts=gate_up.shape[0])
        before = torch.empty(routed, 2 * intermediate, dtype=x.dtype, device=x.device)
        after = torch.empty(routed, intermediate, dtype=x.dtype, device=x.device)
        by_route = torch.empty(routed, width, dtype=x.dtype, device=x.device)
        flat_scores = scores.flatten().contiguous()
        out = torch.empty(tokens, width, dtype=by_route.dtype, device=x.device)
        ctx.save_for_backward(x, gate_up, down, before, flat_scores, *routing)
        ctx.score_shape = scores.shape
        del after
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad = grad_outputs[0].contiguous()
        x, gate_up, down, before = ctx.saved_tensors[:4]
        routed = before.shape[0]
        d_before = torch.empty(before.shape, dtype=grad.dtype, device=grad.device)
        weighted = torch.empty(routed, before.shape[1] // 2, dtype=grad.dtype, device=grad.device)
        d_scores = torch.zeros(routed, dtype=grad.dtype, device=grad.device)
        d_down = torch.zeros_like(down)
        expanded = torch.empty(routed, x.shape[1], dtype=grad.dtype, device=grad.device)
        dx = torch.zeros(x.shape, dtype=grad.dtype, device=grad.device)
        d_gate_up = torch.zeros_like(gate_up)
        del d_before, weighted, expanded
        return dx, d_gate_up, d_down, None, d_scores.view(ctx.score_shape)


def _route(index: torch.Tensor, *, num_experts: int) -> list[torch.Tensor]:
    """The int32 tensors of `compute_routing_metadata` that are kept. The number of tiles is for balanced routing."""
    (tokens, top_k), device = index.shape, index.device
    routed = tokens * top_k
    counts = torch.empty(
        num_experts, -(-tokens // max(1, 1024 // next_power_of_2(top_k))), dtype=torch.int32, device=device
    )
    by_expert = counts.sum(dim=1, dtype=torch.int32)
    num_tiles = num_experts * -(-routed // (num_experts * BLOCK_TOKENS))
    starts, tile_starts, rows, experts, scatter, reverse, gather = (
        torch.empty(size, dtype=torch.int32, device=device)
        for size in (num_experts + 1, num_experts + 1, num_tiles, num_tiles, routed, routed, routed)
    )
    del counts, by_expert, tile_starts
    return [starts, gather, scatter, reverse, rows, experts]


def run_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Replaces `LigerExperts.forward`: hidden states [..., hidden], index and weights [..., top_k]."""
    x = hidden_states.reshape(-1, hidden_states.shape[-1])
    index = top_k_index.view(-1, top_k_index.shape[-1]).to(torch.int32)
    scores = top_k_weights.view(-1, top_k_weights.shape[-1])
    out: torch.Tensor = FusedExperts.apply(x, self.gate_up_proj, self.down_proj, index, scores)
    return out.view(hidden_states.shape)
