"""The gated delta rule of Qwen3-Next, Qwen3.5 and OLMo-Hybrid, in chunks of 64 tokens.

It keeps its inputs (query and key normalised), the sums of the gate, and a 64-wide triangle per token and head. The
states of the chunks are freed when it returns. Source: fla-core 0.5.2 `ops/gated_delta_rule/chunk.py`
(`ChunkGatedDeltaRuleFunction`), `chunk_fwd.py`, `wy_fast.py`, `ops/common/chunk_delta_h.py`, `ops/common/chunk_o.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.scans.fla_blocks import (
    CHUNK,
    Chunks,
    make_chunked,
    pass_gradients,
    pass_states,
    prepare,
    summed_over_groups,
    widest_tile,
)
from axmem_trace.kernels.scans.layouts import fp32, num_chunks
from axmem_trace.tracing.context import KernelContext


class GatedDeltaRule(torch.autograd.Function):
    """Query, key, value, gate and beta are made contiguous first (`input_guard`)."""

    @staticmethod
    def forward(
        ctx: Any,
        context: KernelContext,
        norms: bool,
        final: bool,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        bounds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        prepared = prepare(context, (q, k, v, g, beta), bounds, norms=norms)
        q, k, chunks, (_, _, v, g, beta) = prepared.query, prepared.key, prepared.chunks, prepared.given
        sums = torch.empty_like(g, dtype=torch.float32)
        triangle = k.new_empty((*g.shape, CHUNK))
        w, u = _keys_and_values(k, v)
        states, new_values, final_states = pass_states(chunks, k, u, final=final)
        out = torch.empty_like(v)
        del w, u, states, new_values
        ctx.save_for_backward(
            q, prepared.query_norm, k, prepared.key_norm, v, sums, beta, triangle, chunks.bounds, chunks.indices
        )
        ctx.chunks, ctx.tile = Chunks(chunks.count, chunks.sequences), widest_tile(context)
        ctx.gate_dtype = g.dtype
        return out.to(q.dtype), final_states

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        q, q_norm, k, k_norm, v, sums, beta, *_ = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        q_grad, k_grad, v_grad, beta_grad, g_grad = _gradients(ctx.chunks, ctx.tile, q, k, v, sums, beta, grad_out)
        if q_norm is not None and k_norm is not None:
            q_grad = torch.empty_like(q)
            k_grad = torch.empty_like(k)
        return None, None, None, q_grad, k_grad, v_grad, g_grad.to(ctx.gate_dtype), beta_grad, None


def _keys_and_values(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`recompute_w_u_fwd`: w and u, both per value head."""
    return k.new_empty((*v.shape[:3], k.shape[3])), torch.empty_like(v)


def _gradients(
    chunks: Chunks,
    tile: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sums: torch.Tensor,
    beta: torch.Tensor,
    grad_out: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """`chunk_gated_delta_rule_bwd`, block by block."""
    heads, key_dim = q.shape[2:]
    per_value_head = (*v.shape[:3], key_dim)
    w, u = _keys_and_values(k, v)
    states, new_values, _ = pass_states(chunks, k, u, final=False)
    value_grad = torch.empty_like(grad_out)
    state_grads, value_grad = pass_gradients(chunks, q, value_grad)
    q_grad, k_grad = q.new_empty(per_value_head), k.new_empty(per_value_head)
    partial = fp32(q, num_chunks(key_dim, min(max(1 << (key_dim - 1).bit_length(), 16), tile)), *sums.shape)
    w_grad = torch.empty_like(w)
    q_grad = summed_over_groups(q_grad, heads)
    k_grad = summed_over_groups(k_grad, heads)
    g_grad = partial.sum(0)
    del partial
    k_part, v_grad = k.new_empty(per_value_head), torch.empty_like(v)
    g_part, beta_grad = torch.empty_like(sums), torch.empty_like(beta)
    k_part = summed_over_groups(k_part, heads)
    value_grad = v_grad
    g_grad = torch.empty_like(g_grad)
    del u, states, new_values, state_grads, w_grad, g_part, k_part
    return q_grad, k_grad, value_grad, beta_grad, g_grad


chunk_gated_delta_rule = make_chunked(GatedDeltaRule)
"""Same as `fla.ops.gated_delta_rule.chunk_gated_delta_rule`."""
