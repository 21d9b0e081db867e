"""Rows that several ranks share: where their samples begin, which keys each rank's queries see, and which ranks differ.

Source: ringmaster 0.2.7 `shard.py` (`varlen_meta`, `attention_segments`, `attention_chunk_size`), `ring/loop.py`
(`varlen_ring_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from axmem_trace.parallel.ranks import MAX_RECORDED, RankGroup
from axmem_trace.recipe.recipe import Batch, Evaluation, Recipe

Piece = tuple[int, int, int, int, int]
"""See `sample_pieces`."""


def find_bounds(recipe: Recipe, module: Any, *, rows: int, row_tokens: int, window: int | None) -> list[int] | None:
    """Where samples (or chunks, in a layer that attends within chunks) begin, counted over all rows, and the end; None:
    a kernel without samples runs.

    Args:
        module: the attention layer.
        rows, row_tokens: whole rows, with their padding.
        window: of a layer with a sliding window, which always runs the kernel for samples.
    """
    starts = _sample_starts(recipe, recipe.batch if module.training else recipe.evaluation)
    chunk = _chunk_size(module)
    if not starts and chunk is None and not window:
        return None
    starts = {0, *starts, *(range(0, row_tokens, chunk) if chunk is not None else ())}
    inside = sorted(start for start in starts if start < row_tokens)
    return [row * row_tokens + start for row in range(rows) for start in inside] + [rows * row_tokens]


def _sample_starts(recipe: Recipe, batch: Batch | Evaluation) -> set[int]:
    """In one row of several samples of equal length, with the padding at its end; empty: it has one."""
    samples = recipe.batch.samples_per_row
    if not batch.packed or samples < 2:
        return set()
    return {*range(0, batch.row_tokens, -(-batch.row_tokens // samples)), batch.row_tokens}


def _chunk_size(module: Any) -> int | None:
    config, index = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds or index is None or kinds[index] != "chunked_attention":
        return None
    return int(config.attention_chunk_size)  # type: ignore[union-attr]


def place_bounds(bounds: list[int], device: torch.device) -> tuple[torch.Tensor, int]:
    """The int32 tensor that flash-attn's kernels take, and the length of the longest sample."""
    starts = torch.tensor(bounds, device=device, dtype=torch.int32)
    return starts, int(starts.diff().max().item())


def sample_pieces(bounds: Sequence[int], *, rows: int, tokens: int, ranks: int, place: int) -> list[Piece]:
    """For each sample of which a rank of a ring has tokens: its row, the first and the end of them among the rank's tokens,
    and the keys that they see: from the sample's start to the last of them, in the whole row.

    >>> sample_pieces([0, 6, 8], rows=1, tokens=4, ranks=2, place=1)
    [(0, 0, 2, 0, 6), (0, 2, 4, 6, 8)]
    """
    whole, found = ranks * tokens, []
    for row in range(rows):
        first = row * whole + place * tokens
        for start, stop in pairwise(bounds):
            low, high = max(start, first), min(stop, first + tokens)
            if low < high:
                found.append((row, low - first, high - first, start - row * whole, high - row * whole))
    return found


def split_by_ring(groups: Sequence[RankGroup], recipe: Recipe) -> tuple[RankGroup, ...]:
    """The groups, divided by the places in a ring: queries of later tokens see more keys. Where these are too many, rank 0's
    is recorded, that with the most keys, and the last."""
    context = recipe.parallel.context
    if context.ring == 1:
        return tuple(groups)
    found: dict[tuple[int, int], list[int]] = {}
    for index, group in enumerate(groups):
        for rank in group.ranks:
            found.setdefault((index, context.place_in_ring(rank // recipe.parallel.mesh.expert)), []).append(rank)
    keys = [_keys_seen(recipe, place) for place in range(context.ring)]
    order = sorted(found, key=lambda kind: found[kind][0])
    most = max(order, key=lambda kind: (keys[kind[1]], groups[kind[0]].nbytes))
    recorded = order if len(order) <= MAX_RECORDED else [order[0], most, order[-1]]
    return tuple(replace(groups[kind[0]], ranks=tuple(found[kind]), recorded=kind in recorded) for kind in order)


def _keys_seen(recipe: Recipe, place: int) -> int:
    """By one row's queries of a rank."""
    context, batch = recipe.parallel.context, recipe.batch
    tokens = -(-batch.row_tokens // context.size) * context.heads
    starts = sorted(_sample_starts(recipe, batch) or {0})
    bounds = [start for start in starts if start < tokens * context.ring] + [tokens * context.ring]
    pieces = sample_pieces(bounds, rows=1, tokens=tokens, ranks=context.ring, place=place)
    return sum(end - start for *_, start, end in pieces)
