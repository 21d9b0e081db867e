"""Temporary memory of the flash kernels, in bytes: their allocations, without inputs and outputs.

Letters: B batch, H query heads, G key/value heads, S queries, T keys, D head size.

Each function returns the blocks that are alive together with the kernel's outputs. This module does not import torch.
"""

from __future__ import annotations

import math

_FLOAT = 4
Blocks = tuple[int, ...]


def round_up(value: int, multiple: int) -> int:
    """`value`, rounded up to a multiple."""
    return -(-value // multiple) * multiple


def rounded_head_dim(head_dim: int) -> int:
    """`head_size_rounded` of FlashAttention-2 (flash-attn 2.8.3, csrc/flash_attn/flash_api.cpp, `mha_fwd`)."""
    return round_up(head_dim, 32 if head_dim <= 128 else 64)


def num_splits(*, batch: int, heads: int, queries: int, keys: int, head_dim: int, num_sms: int) -> int:
    """The number of parts into which the fixed-length forward splits the keys. It is above 1 if there are too few queries to
    use the whole card.

    Source: flash-attn 2.8.3, csrc/flash_attn/flash_api.cpp, `set_params_splitkv` and `num_splits_heuristic`; torch's
    copy (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp) is the same.
    """
    block_keys = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    key_blocks = -(-keys // block_keys)
    work = batch * heads * -(-queries // 64)
    slots = num_sms * 2
    if work >= 0.8 * slots:
        return 1
    efficiency: dict[int, float] = {}
    for splits in range(1, min(128, slots, key_blocks) + 1):
        if splits == 1 or -(-key_blocks // splits) != -(-key_blocks // (splits - 1)):
            waves = work * splits / slots
            efficiency[splits] = waves / math.ceil(waves)
    best = max(efficiency.values(), default=0.0)
    return next((splits for splits, each in efficiency.items() if each >= 0.85 * best), 1)


def split_scratch(*, splits: int, batch: int, heads: int, queries: int, head_dim: int) -> Blocks:
    """`softmax_lse_accum` and `out_accum`, both in fp32 for each split; nothing if the keys are not split."""
    if splits <= 1:
        return ()
    rows = splits * batch * heads * queries
    return rows * _FLOAT, rows * rounded_head_dim(head_dim) * _FLOAT


def flash2_backward(
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    itemsize: int = 2,
    deterministic_splits: int = 1,
) -> Blocks:
    """`softmax_d`, `dq_accum`, and for grouped queries `dk_expanded` and `dv_expanded` (one for each query head).

    Source: flash-attn 2.8.3, csrc/flash_attn/flash_api.cpp, `mha_bwd`.
    """
    queries_rounded = round_up(queries, 128)
    softmax_d = batch * heads * queries_rounded * _FLOAT
    dq_accum = deterministic_splits * batch * queries_rounded * heads * rounded_head_dim(head_dim) * _FLOAT
    return softmax_d, dq_accum, *_expanded(batch * keys, heads, kv_heads, head_dim, itemsize)


def flash2_varlen_backward(
    *,
    samples: int,
    heads: int,
    kv_heads: int,
    total_queries: int,
    total_keys: int,
    head_dim: int,
    itemsize: int = 2,
    deterministic_splits: int = 1,
) -> Blocks:
    """The same for rows of samples without padding, with 128 additional rows for each sample.

    Source: flash-attn 2.8.3, csrc/flash_attn/flash_api.cpp, `mha_varlen_bwd`.
    """
    rows = total_queries + 128 * samples
    softmax_d = heads * rows * _FLOAT
    dq_accum = deterministic_splits * rows * heads * rounded_head_dim(head_dim) * _FLOAT
    return softmax_d, dq_accum, *_expanded(total_keys, heads, kv_heads, head_dim, itemsize)


def deterministic_splits(num_sms: int, batch: int, heads: int) -> int:
    """`nsplits` of the deterministic backward: the number of copies of `dq_accum` (flash_api.cpp, `mha_bwd`)."""
    return (num_sms + batch * heads - 1) // (batch * heads)


def _expanded(tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> Blocks:
    if heads == kv_heads:
        return ()
    return (tokens * heads * head_dim * itemsize,) * 2
