"""A ring that gathers keys and values of all ranks at once, and runs the kernel for this rank's queries.

Source: ringmaster 0.2.7 `ring/loop.py` (`_AllGatherKV`, `_allgather_ring`, `varlen_ring_attention`). NCCL's all-gather into
a list of tensors, and its reduce-scatter of one, copy through one flat tensor (torch 2.13 `ProcessGroupNCCL.cpp`,
`allgather`, `reduce_scatter`: `newLikeFlat`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.attention.flash2 import run_flash2
from axmem_trace.kernels.attention.fused import Heads
from axmem_trace.parallel.context import sample_pieces
from axmem_trace.tracing.context import KernelContext


class GatherRows(torch.autograd.Function):
    """Gathers (B, S, H, D) to (ranks, B, S, H, D): a tensor for each rank and NCCL's flat tensor, then a stack of them.
    Backward sums the gradients of all ranks: a flat copy, and this rank's part."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: int) -> torch.Tensor:
        ctx.ranks = ranks
        found = [torch.empty_like(rows) for _ in range(ranks)]
        _flat(rows, ranks)
        return torch.stack(found)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        gradient = grad_outputs[0]
        own = torch.empty_like(gradient[0], memory_format=torch.contiguous_format)
        parts = [gradient[index].contiguous() for index in range(ctx.ranks)]
        _flat(own, ctx.ranks)
        del parts
        return own, None


def _flat(rows: torch.Tensor, ranks: int) -> None:
    """Allocates and frees NCCL's flat tensor."""
    torch.empty((ranks, *rows.shape), dtype=rows.dtype, device=rows.device)


def run_gathered(context: KernelContext, heads: Heads, *, ranks: int, place: int) -> torch.Tensor:
    """Computes (B, S, H, D) from this rank's heads (B, H, S, D). The kernel gets copies of the keys and values of this rank
    and of the previous ranks, so the last rank needs the most memory."""
    query, key, value = (each.transpose(1, 2).contiguous() for each in heads)
    keys = list(GatherRows.apply(key, ranks).unbind(0))
    values = list(GatherRows.apply(value, ranks).unbind(0))
    end = place + 1
    whole = query, torch.cat(keys[:end], dim=1), torch.cat(values[:end], dim=1)
    return run_flash2(context, whole, window_left=-1, returns_lse=True)


def run_gathered_samples(
    heads: Heads,
    varlen: Callable[..., torch.Tensor],
    bounds: list[int],
    *,
    ranks: int,
    place: int,
    window: int | None,
) -> torch.Tensor:
    """The same for rows with several samples. The kernel gets copies of each sample's keys and values, up to this rank's
    last token of the sample.

    Args:
        bounds: the positions at which samples begin in all rows, and the end.
    """
    query, key, value = (each.transpose(1, 2).contiguous() for each in heads)
    all_keys = torch.cat(list(GatherRows.apply(key, ranks).unbind(0)), dim=1)
    all_values = torch.cat(list(GatherRows.apply(value, ranks).unbind(0)), dim=1)
    rows, tokens, num_heads, head_dim = query.shape
    pieces = sample_pieces(bounds, rows=rows, tokens=tokens, ranks=ranks, place=place)
    queries, keys, values = [], [], []
    for row, low, high, start, end in pieces:
        queries.append(query[row, low:high])
        keys.append(all_keys[row, start:end])
        values.append(all_values[row, start:end])
    lengths = [[high - low for _, low, high, _, _ in pieces], [end - start for *_, start, end in pieces]]
    starts = [
        torch.tensor([0, *each], dtype=torch.int32, device=query.device).cumsum(0, dtype=torch.int32)
        for each in lengths
    ]
    more = {"window_size": (window - 1, 0)} if window else {}
    longest = (max(lengths[0]), max(lengths[1]))
    out = varlen(torch.cat(queries), torch.cat(keys), torch.cat(values), *starts, *longest, causal=True, **more)
    return out.reshape(rows, tokens, num_heads, head_dim)
