"""Temporary memory of FlashAttention-3 and -4, in bytes. Letters as in `flash_sizes`.

Both backwards allocate fp32 accumulators of dq, and for grouped queries of dk and dv for each *key* head. Their rows are
rounded up to the kernel's tile. Both also allocate the sums `dO * O` and the logsumexp in base 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from axmem_trace.kernels.attention.flash_sizes import Blocks, round_up

_FLOAT = 4
Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class BackwardTile:
    """The rows of a tile of queries and of keys, the rounded head sizes, and the number of blocks in a cluster."""

    queries: int
    keys: int
    head_dim_rounded: int
    value_dim_rounded: int
    cluster: int = 1
    accumulates: bool = True
    """False only for FlashAttention-4's separate kernel for head size 256 on Blackwell, which has no accumulators."""


def flash3_tile(
    head_dim: int, value_dim: int, capability: Capability, *, causal: bool, local: bool, softcap: bool = False
) -> BackwardTile:
    """Source: flash-attention, hopper/flash_api.cpp, `mha_bwd` (`kBlockM_sm90`, `kBlockN_sm90`, ... and
    `round_up_headdim`), as in xformers 0.0.33 (third_party/flash-attention); not in flash-attn's own package."""
    largest = max(head_dim, value_dim)
    rounded = next((size for size in (64, 96, 128, 192, 256) if largest <= size), round_up(largest, 64))
    if capability >= (9, 0):
        whole = rounded == 128 and not (causal or local or softcap)
        capped = causal and softcap and not local
        queries = (96 if capped else 128) if rounded <= 64 else 80 if whole else 64
        keys = 128 if rounded <= 128 else 96 if rounded <= 192 else 80
    elif capability in ((8, 6), (8, 9)):
        queries = 64 if rounded <= 192 else 32
        keys = 128 if rounded <= 96 else 96 if rounded <= 128 else 64
    else:
        queries = 128 if rounded <= 64 else 64
        keys = 128 if rounded <= 128 else 80 if rounded <= 192 else 64
    return BackwardTile(queries, keys, rounded, rounded)


def flash4_tile(
    head_dim: int, value_dim: int, capability: Capability, *, causal: bool, local: bool, softcap: bool = False
) -> BackwardTile:
    """Source: flash-attn-4 4.0.0b36, flash_attn/cute/interface.py, `_flash_attn_bwd`, `_tile_size_bwd_sm90`."""
    if capability[0] == 12:
        return BackwardTile(64, 64, round_up(head_dim, 32), round_up(value_dim, 32))
    if capability[0] == 9:
        queries = 128 if head_dim <= 64 else 80 if 96 < head_dim <= 128 and not (causal or local) else 64
        keys = 128 if head_dim <= 128 else 96 if head_dim <= 192 else 48
        multiple = 64 if head_dim > 128 else 32
        return BackwardTile(queries, keys, round_up(head_dim, multiple), round_up(value_dim, multiple))
    accumulates = (head_dim, value_dim) != (256, 256)
    return BackwardTile(128, 128, round_up(head_dim, 32), round_up(value_dim, 32), 1 + (head_dim >= 128), accumulates)


def backward_scratch(
    tile: BackwardTile, *, batch: int, heads: int, kv_heads: int, queries: int, keys: int, semaphores: bool = False
) -> Blocks:
    """The blocks for rows of fixed length. `semaphores`: FlashAttention-3 counts finished tiles of dq in int32."""
    tiles_of_keys = -(-keys // tile.keys)
    rows = batch * round_up(queries, tile.queries)
    columns = batch * round_up(tiles_of_keys, tile.cluster) * tile.keys
    locks = batch * heads * -(-queries // tile.queries) * 4 if semaphores else 0
    return _scratch(tile, rows=rows, columns=columns, heads=heads, kv_heads=kv_heads, locks=locks)


def varlen_backward_scratch(
    tile: BackwardTile,
    *,
    samples: int,
    heads: int,
    kv_heads: int,
    total_queries: int,
    total_keys: int,
    longest: int = 0,
) -> Blocks:
    """The blocks for rows of samples without padding: one more tile for each sample. `longest`: the queries of the longest
    sample, for semaphores."""
    rows = round_up(total_queries + samples * tile.queries, tile.queries)
    cluster_keys = tile.keys * tile.cluster
    columns = round_up(total_keys + samples * cluster_keys, cluster_keys)
    locks = samples * heads * -(-longest // tile.queries) * 4
    return _scratch(tile, rows=rows, columns=columns, heads=heads, kv_heads=kv_heads, locks=locks)


def _scratch(tile: BackwardTile, *, rows: int, columns: int, heads: int, kv_heads: int, locks: int) -> Blocks:
    sums = rows * heads * _FLOAT
    blocks = [sums, sums]
    if tile.accumulates:
        blocks.append(rows * heads * tile.head_dim_rounded * _FLOAT)
        if heads != kv_heads:
            blocks.append(columns * kv_heads * tile.head_dim_rounded * _FLOAT)
            blocks.append(columns * kv_heads * tile.value_dim_rounded * _FLOAT)
    return (*blocks, locks) if locks else tuple(blocks)
