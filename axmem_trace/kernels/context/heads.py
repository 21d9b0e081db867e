"""Ulysses: with an all-to-all each rank receives all tokens of a part of the heads. Then the model's own kernel runs. With
another all-to-all each rank receives its own tokens of all heads.

Source: ringmaster 0.2.7 `comm.py` (`_all_to_all`, `SeqAllToAll4D`), `strategies/ulysses.py`. For NCCL's all-to-all of one
tensor, PyTorch allocates no further buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.parallel.context import find_bounds, place_bounds
from axmem_trace.recipe.recipe import Recipe

AttentionFunction = Callable[..., Any]


def exchange(tensor: torch.Tensor, ranks: int, *, scatter: int, gather: int) -> torch.Tensor:
    """A tensor that is `ranks` times shorter in dimension `scatter`, and as many times longer in `gather`."""
    out: torch.Tensor = _Exchange.apply(tensor, ranks, scatter, gather)
    return out


class _Exchange(torch.autograd.Function):
    """Keeps nothing. Backward is the opposite exchange."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, ranks: int, scatter: int, gather: int) -> torch.Tensor:
        ctx.ranks, ctx.scatter, ctx.gather = ranks, scatter, gather
        return _exchanged(tensor, ranks, scatter, gather)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        return _exchanged(grad_outputs[0], ctx.ranks, ctx.gather, ctx.scatter), None, None, None


def _exchanged(tensor: torch.Tensor, ranks: int, scatter: int, gather: int) -> torch.Tensor:
    """Allocates the tensor to send (the parts for each rank one after the other), the received tensor, and an ordered copy
    of it. The first two are freed at the end. The first one is `tensor` itself if its memory has that order."""
    sent = tensor.movedim(scatter, 0).contiguous()
    sent = sent.reshape(ranks, sent.shape[0] // ranks, *sent.shape[1:])
    received = torch.empty_like(sent)
    received = received.movedim(1, scatter + 1).movedim(0, gather)
    shape = received.shape
    return received.contiguous().reshape(*shape[:gather], ranks * shape[gather + 1], *shape[gather + 2 :])


def exchange_heads(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor], ranks: int, *, joins_all: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exchanges query, key and value (B, H, S / ranks, D) for (B, H / ranks, S, D).

    Args:
        joins_all: without grouped queries, all three are exchanged as one tensor. Otherwise key and value are one tensor.
    """
    query, key, value = heads
    if joins_all and query.shape[1] == key.shape[1]:
        joined = exchange(torch.stack((query, key, value)), ranks, scatter=2, gather=3)
        return joined[0], joined[1], joined[2]
    query = exchange(query, ranks, scatter=1, gather=2)
    joined = exchange(torch.stack((key, value)), ranks, scatter=2, gather=3)
    return query, joined[0], joined[1]


def make_ulysses(
    recipe: Recipe, kernel: str, inner: AttentionFunction, varlen: Callable[..., torch.Tensor]
) -> AttentionFunction:
    """An attention function for transformers, with an exchange before and after the kernel.

    Args:
        kernel: its name in transformers; `inner` is its attention function.
        varlen: flash-attn's `flash_attn_varlen_func`, for rows with several samples.
    """
    ranks = recipe.parallel.context.heads

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        q, k, v = exchange_heads((query, key, value), ranks, joins_all=True)
        window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
        bounds = find_bounds(recipe, module, rows=q.shape[0], row_tokens=q.shape[2], window=window)
        if bounds is None:
            module.config._attn_implementation, name = kernel, module.config._attn_implementation
            try:
                out, _ = inner(
                    module, q, k, v, None, dropout=dropout, scaling=scaling, is_causal=is_causal is not False, **kwargs
                )
            finally:
                module.config._attn_implementation = name
        else:
            starts, longest = place_bounds(bounds, q.device)
            if kernel.startswith("flash"):
                out = _run_varlen(varlen, (q, k, v), starts, longest, window)
            else:
                out = _run_masked((q, k, v), starts, dropout, scaling, window)
        return exchange(out.contiguous(), ranks, scatter=1, gather=2), None

    return attention


def _run_varlen(
    varlen: Callable[..., torch.Tensor],
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    starts: torch.Tensor,
    longest: int,
    window: int | None,
) -> torch.Tensor:
    """Computes (B, S, H, D) from heads (B, H, S, D). The kernel gets and keeps copies (B x S, H, D)."""
    rows, num_heads, tokens, _ = heads[0].shape
    flat = (each.transpose(1, 2).reshape(-1, each.shape[1], each.shape[-1]).contiguous() for each in heads)
    more = {"window_size": (window - 1, 0)} if window else {}
    out = varlen(*flat, starts, starts, longest, longest, causal=True, **more)
    return out.reshape(rows, tokens, num_heads, heads[0].shape[-1])


def _run_masked(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    starts: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """SDPA with a mask [B, 1, S, S] of samples, which each layer allocates."""
    query, key, value = heads
    device, tokens = query.device, query.shape[2]
    lengths = starts.diff().long()
    sample = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths).reshape(query.shape[0], tokens)
    place = torch.arange(tokens, device=device)
    allowed = sample[:, :, None] == sample[:, None, :]
    allowed &= place[:, None] >= place[None, :]
    if window:
        allowed &= place[:, None] - place[None, :] < window
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=allowed[:, None],
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    ).transpose(1, 2)
