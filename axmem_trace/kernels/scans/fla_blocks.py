"""Shared code of flash-linear-attention's chunked kernels: chunks, and the blocks of each stage.

Source: fla-core 0.5.2 `ops/common/chunk_delta_h.py`, `ops/utils/index.py`, `modules/l2norm.py`, `utils/_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from axmem_trace.kernels.scans.layouts import fp32, num_chunks
from axmem_trace.tracing.context import KernelContext

CHUNK = 64
"""Tokens per chunk (`chunk_size` of every chunked kernel here)."""
_SHARED_MEMORY = {
    (7, 0): 98304,
    (7, 5): 65536,
    (8, 0): 166912,
    (8, 7): 166912,
    (9, 0): 232448,
    (10, 0): 232448,
    (10, 3): 232448,
}
"""Compute capability -> the most bytes of shared memory for one block (CUDA programming guide, table of technical
specifications). Others (8.6, 8.9, 12.x) have 101376."""


def widest_tile(context: KernelContext) -> int:
    """`CONST_TILING`, which depends on the card's shared memory (`check_shared_mem("hopper")`, `("ada")`)."""
    shared = _SHARED_MEMORY.get(context.compute_capability, 101376)
    if shared >= 232448:
        return 128
    return 64 if shared >= 101376 else 32


@dataclass(frozen=True, slots=True)
class Chunks:
    """How the tokens of a call are divided into chunks, sample by sample.

    Attributes:
        count: the number of chunks of one row.
        sequences: the number of rows; with packed samples, the number of samples.
        bounds: `cu_seqlens`.
        indices: a sample and a chunk in it, for each chunk; kept for backward if samples are packed.
    """

    count: int
    sequences: int
    bounds: torch.Tensor | None = None
    indices: torch.Tensor | None = None

    @classmethod
    def of(cls, context: KernelContext, tokens: torch.Tensor, bounds: torch.Tensor | None) -> Chunks:
        """The chunks of `tokens` [batch, length, ...]. A packed row has at least one chunk per sample."""
        batch, length = tokens.shape[:2]
        if bounds is None:
            return cls(num_chunks(length, CHUNK), batch)
        samples = len(bounds) - 1
        known = context.recorder.values.value_of(bounds)
        count = num_chunks(length, CHUNK) + samples - 1
        if known is not None:
            count = sum(num_chunks(sample, CHUNK) for sample in known.diff().tolist())
        return cls(count, samples, bounds, bounds.new_empty((count, 2)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """The prepared inputs of a chunked kernel. They are alive while its forward runs."""

    given: tuple[torch.Tensor, ...]
    """Query, key, value, gate and beta, contiguous (`input_guard`)."""
    query: torch.Tensor
    key: torch.Tensor
    """Query and key, normalised if the kernel does that."""
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    chunks: Chunks


def prepare(
    context: KernelContext, given: tuple[torch.Tensor, ...], bounds: torch.Tensor | None, *, norms: bool
) -> Prepared:
    """Makes the inputs contiguous, then normalises query and key, then finds the chunks."""
    given = tuple(each.contiguous() for each in given)
    query, key, *_ = given
    query_norm, key_norm = None, None
    if norms:
        (query, query_norm), (key, key_norm) = normalised(query), normalised(key)
    return Prepared(given, query, key, query_norm, key_norm, Chunks.of(context, query, bounds))


def make_chunked(function: type[torch.autograd.Function]) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The function that a package exports for its autograd function. Training passes no initial state."""

    def chunked(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        scale: float | None = None,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: torch.Tensor | None = None,
        *,
        context: KernelContext,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out, final_states = function.apply(
            context, use_qk_l2norm_in_kernel, output_final_state, q, k, v, g, beta, cu_seqlens
        )
        return out, final_states

    return chunked


def normalised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`l2norm_fwd`: the normalised tensor, and one fp32 value per row. Both are kept."""
    return torch.empty_like(x), fp32(x, *x.shape[:-1])


def pass_states(
    chunks: Chunks, k: torch.Tensor, u: torch.Tensor, *, final: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`chunk_gated_delta_rule_fwd_h`: a state per chunk in the inputs' dtype, the new values, the final states."""
    heads, key_dim, value_dim = u.shape[2], k.shape[3], u.shape[3]
    states = k.new_empty((k.shape[0], chunks.count, heads, key_dim, value_dim))
    final_states = fp32(k, chunks.sequences, heads, key_dim, value_dim) if final else None
    return states, torch.empty_like(u), final_states


def pass_gradients(chunks: Chunks, q: torch.Tensor, value_grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`chunk_gated_delta_rule_bwd_dhu`: the states' gradients, and a second tensor for those of the new values."""
    states = q.new_empty((q.shape[0], chunks.count, value_grad.shape[2], q.shape[3], value_grad.shape[3]))
    return states, torch.empty_like(value_grad)


def summed_over_groups(gradient: torch.Tensor, heads: int) -> torch.Tensor:
    """Sums the gradients of value heads that share a query and key head."""
    if gradient.shape[2] == heads:
        return gradient
    return gradient.unflatten(2, (heads, -1)).sum(3)
