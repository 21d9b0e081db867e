"""Kimi delta attention: a gate per key channel.

Source: fla-core 0.5.2 `ops/kda/chunk.py` (`ChunkKDAFunction`), `chunk_fwd.py`, `chunk_bwd.py`, `chunk_intra.py`,
`wy_fast.py`. The gate is computed outside, as in transformers 5.
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
)
from axmem_trace.kernels.scans.layouts import fp32, num_chunks
from axmem_trace.tracing.context import KernelContext

_DIAGONAL = 16
"""The width of the diagonal blocks that are solved first in a triangle."""
_TILE = 32
"""Key channels per partial sum of beta's gradient (`BK` in `chunk_kda_bwd_intra`)."""


class KimiDelta(torch.autograd.Function):
    """Keeps its inputs (query and key normalised), the gate and its sums in fp32, and two 64-wide triangles per head."""

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
        scores, triangle = k.new_empty((*v.shape[:3], CHUNK)), k.new_empty((*v.shape[:3], CHUNK))
        diagonal = fp32(k, *v.shape[:3], _DIAGONAL)
        w, u, gated_keys = _keys_and_values(k, v)
        del diagonal
        states, new_values, final_states = pass_states(chunks, k, u, final=final)
        out = torch.empty_like(v)
        del w, u, gated_keys, states, new_values
        ctx.save_for_backward(
            q,
            prepared.query_norm,
            k,
            prepared.key_norm,
            v,
            sums,
            g,
            beta,
            scores,
            triangle,
            chunks.bounds,
            chunks.indices,
        )
        ctx.chunks = Chunks(chunks.count, chunks.sequences)
        return out.type_as(q), final_states

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        q, q_norm, k, k_norm, v, sums, g, beta, *_ = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        q_grad, k_grad, v_grad, beta_grad, g_grad = _gradients(ctx.chunks, q, k, v, sums, beta, grad_out)
        if q_norm is not None and k_norm is not None:
            q_grad = torch.empty_like(q)
            k_grad = torch.empty_like(k)
        return (
            None,
            None,
            None,
            q_grad.to(q.dtype),
            k_grad.to(k.dtype),
            v_grad,
            g_grad.to(g.dtype),
            beta_grad.to(beta.dtype),
            None,
        )


def _keys_and_values(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`recompute_w_u_fwd`, which also computes gated keys."""
    per_value_head = (*v.shape[:3], k.shape[3])
    return k.new_empty(per_value_head), torch.empty_like(v), k.new_empty(per_value_head)


def _gradients(
    chunks: Chunks,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sums: torch.Tensor,
    beta: torch.Tensor,
    grad_out: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """`chunk_kda_bwd`, block by block: everything is recomputed, and the gradients are summed in fp32."""
    per_value_head = (*v.shape[:3], k.shape[3])
    w, u, gated_keys = _keys_and_values(k, v)
    gated_queries = k.new_empty(per_value_head)
    states, new_values, _ = pass_states(chunks, k, u, final=False)
    score_grad, value_grad = fp32(v, *v.shape[:3], CHUNK), torch.empty_like(grad_out)
    state_grads, value_grad = pass_gradients(chunks, gated_queries, value_grad)
    q_grad, k_grad = fp32(q, *per_value_head), fp32(q, *per_value_head)
    v_grad, g_grad = torch.empty_like(v), torch.empty_like(sums)
    beta_grad = torch.empty_like(beta, dtype=torch.float32)
    triangle_grad = fp32(v, *v.shape[:3], CHUNK)
    value_grad = v_grad
    again = torch.empty_like(q_grad), torch.empty_like(k_grad)
    beta_parts = fp32(beta, num_chunks(k.shape[3], min(_TILE, 1 << (k.shape[3] - 1).bit_length())), *beta.shape)
    g_again = torch.empty_like(g_grad)
    beta_grad = beta_parts.sum(0)
    (q_grad, k_grad), g_grad = again, g_again
    del beta_parts, again, g_again
    q_grad = summed_over_groups(q_grad, q.shape[2])
    k_grad = summed_over_groups(k_grad, q.shape[2])
    g_grad = torch.empty_like(g_grad)
    del w, gated_keys, states, new_values, score_grad, state_grads, triangle_grad
    return q_grad, k_grad, value_grad, beta_grad, g_grad


chunk_kda = make_chunked(KimiDelta)
"""Same as `fla.ops.kda.chunk_kda`."""
