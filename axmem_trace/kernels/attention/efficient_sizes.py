"""Temporary memory of the memory-efficient (CUTLASS) kernels, in bytes.

Letters as in `flash_sizes`. Sources: torch 2.13, torch/include/ATen/native/transformers/cuda/mem_eff_attention/
kernel_backward.h (`Params::workspace_size`), kernels/cutlassB.h (the list of tiles), kernel_forward.h
(`kNeedsOutputAccumulatorBuffer`), and aten/src/ATen/native/transformers/cuda/attention_backward.cu (the choice of the tile,
the split of keys). xformers' CUTLASS operator is the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

from axmem_trace.kernels.attention.flash_sizes import Blocks, round_up

_FLOAT = 4
_ANY_HEAD = 65536
_HEAD_IN_REGISTERS = 128
"""The largest head size for which forward keeps its output in registers (cutlassF.h, the `rf` kernels)."""


@dataclass(frozen=True, slots=True)
class Tile:
    """`AttentionBackwardKernel<..., kBlockSizeI, kBlockSizeJ, kMaxK>`."""

    queries: int
    keys: int
    max_head_dim: int
    half: bool

    @property
    def accumulates_keys(self) -> bool:
        """`kNeedsAccumGradK`: dk and dv do not fit into registers, and their own dtype is not fp32."""
        return self.half and self.max_head_dim > self.queries


def backward_tile(head_dim: int, *, half: bool, capability: tuple[int, int], dropout: bool = False) -> Tile:
    """The first kernel of cutlassB.h that supports the head size and fits into the card's shared memory.

    The shared memory of each kernel is a constant of its launcher (`sizeof(Kernel::SharedStorage)`, bytes). Half precision
    on 8.0 and newer: 133,632 to 162,304 for 128x128, and 60,928 for 128x64 with any head; fp32: 121,344 for 128x64. For
    128x64: 54,784 on 7.5 and 50,176 on 7.0. The limit for a block is 99 KiB on 8.6, 8.9 and 12.x, at least 163 KiB on the
    other cards from 8.0 on, 64 KiB on 7.5 and 96 KiB on 7.0.

    Args:
        head_dim: the larger head size of query and value.
        half: fp16 or bf16, else fp32.
        capability: 8.6 and 8.9 have one more kernel, for heads up to 96 without dropout.
        dropout: the call uses dropout.
    """
    roomy = capability >= (8, 0) and capability not in ((8, 6), (8, 9)) and capability[0] != 12
    if head_dim <= 64:
        return Tile(64, 64, 32 if head_dim <= 32 else 64, half)
    if head_dim > 128:
        return Tile(128 if half or roomy else 64, 64, _ANY_HEAD, half)
    if half and capability in ((8, 6), (8, 9)) and head_dim <= 96 and not dropout:
        return Tile(128, 64, 96, half)
    if half and capability >= (8, 0):
        return Tile(128, 128, 128, half) if roomy else Tile(64, 64, 128, half)
    return Tile(128 if half or roomy else 64, 64, 128, half)


def key_splits(tile: Tile, *, batch: int, heads: int, keys: int) -> int:
    """`num_splits_key`: the launcher's choice."""
    splits = -(-keys // tile.keys)
    if batch * heads >= 256 and keys <= 2 * tile.keys:
        splits = 1
    if tile.accumulates_keys:
        splits = min(splits, 200 // (batch * heads))
    return max(splits, 1)


def backward_workspace(
    tile: Tile, *, batch: int, heads: int, queries: int, keys: int, head_dim: int, value_dim: int
) -> int:
    """`workspace_size` in bytes: for each block of queries an fp32 tile of dq with a lock; for each split of the keys, dk
    and dv."""
    tile_bytes = 16 + tile.queries * tile.keys * _FLOAT
    floats = -(-queries // tile.queries) * -(-head_dim // tile.keys) * tile_bytes // _FLOAT
    if tile.accumulates_keys:
        columns = round_up(head_dim, tile.queries) + round_up(value_dim, tile.queries)
        floats += key_splits(tile, batch=batch, heads=heads, keys=keys) * tile.keys * columns
    return batch * heads * round_up(floats, 4) * _FLOAT


def efficient_backward(
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    value_dim: int,
    half: bool,
    capability: tuple[int, int],
    dropout: bool = False,
    tokens: int = 0,
) -> Blocks:
    """The workspace, and `delta`, which half-precision kernels compute themselves.

    For fp32 kernels `delta` is computed before the workspace is allocated, by
    `(grad_out * out).sum(-1).transpose(-2, -1).contiguous()`: a product as large as the output, the sum, and its copy. The
    result is the larger of the two stages.

    Args:
        tokens: tokens of all samples, for rows without padding. Then `queries` and `keys` are those of the longest sample.
    """
    tile = backward_tile(max(head_dim, value_dim), half=half, capability=capability, dropout=dropout)
    workspace = backward_workspace(
        tile, batch=batch, heads=heads, queries=queries, keys=keys, head_dim=head_dim, value_dim=value_dim
    )
    delta = (tokens or batch * queries) * heads * _FLOAT
    preparing = () if half else (delta * value_dim, delta, delta)
    return max((delta, workspace), preparing, key=sum)


def efficient_forward(*, batch: int, heads: int, queries: int, head_dim: int, value_dim: int, half: bool) -> Blocks:
    """`output_accum`: another copy of the output, in fp32, if the output does not fit into registers.

    The kernels that keep it in registers support keys and values of at most 128 (attention.cu,
    `_efficient_attention_forward`: `value.size(3) > Kernel::kMaxK || key.size(3) > Kernel::kMaxK`).
    """
    if not half or max(head_dim, value_dim) <= _HEAD_IN_REGISTERS:
        return ()
    return (batch * queries * heads * value_dim * _FLOAT,)
