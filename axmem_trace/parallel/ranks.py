"""Which ranks hold parts of other sizes, and which of them are recorded.

FSDP2 divides the first dimension of a parameter: 97 rows on 8 ranks are 13 on each of the first 7 and 6 on the last (torch
2.14 `distributed/fsdp/_fully_shard/_fsdp_param.py`, `torch.chunk`). FSDP1 divides a unit's parameters, one after the other
in one flat tensor, so almost every rank has parts of other parameters (`_flat_param.py`, `_ShardParamInfo`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from axmem_trace.ledger import block_bytes
from axmem_trace.recipe.parallel import Parallel

MAX_RECORDED = 3
"""Groups of ranks that are recorded, rank 0 included. Each takes as long as the first."""


@dataclass(frozen=True, slots=True)
class RankGroup:
    """Ranks that hold parts of equal sizes.

    Attributes:
        ranks: in order.
        nbytes: of the trained parts, in blocks; what depends on them is largest where this is.
        recorded: False: too many groups differ, and none of these ranks holds more than a recorded one.
    """

    ranks: tuple[int, ...]
    nbytes: int = 0
    recorded: bool = True


def all_alike(num_ranks: int) -> tuple[RankGroup, ...]:
    """One group."""
    return (RankGroup(tuple(range(num_ranks))),)


def group_fsdp2(model: nn.Module, parallel: Parallel) -> tuple[RankGroup, ...]:
    """Groups of equal local shapes of trained parameters; shards of frozen ones are padded to the same size."""
    from torch.distributed.tensor import DTensor

    rows = [
        (each.shape[0], each.numel() // max(each.shape[0], 1) * each.element_size())
        for each in model.parameters()
        if each.requires_grad and isinstance(each, DTensor)
    ]
    num_shards = parallel.mesh.num_shards

    def parts(rank: int) -> list[int]:
        return [rows_of_shard(count, num_shards, rank % num_shards) * size for count, size in rows]

    return _group(parallel, parts)


def rows_of_shard(rows: int, num_shards: int, shard: int) -> int:
    """Rows of one chunk of `torch.chunk`.

    >>> [rows_of_shard(97, 8, shard) for shard in range(8)]
    [13, 13, 13, 13, 13, 13, 13, 6]
    >>> [rows_of_shard(3, 4, shard) for shard in range(4)]
    [1, 1, 1, 0]
    """
    each = -(-rows // num_shards)
    return max(0, min(each, rows - shard * each))


def group_fsdp1(wrapped: Any, parallel: Parallel) -> tuple[RankGroup, ...]:
    """Groups of equal parts of trained parameters in the flat shards."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    units = []
    for unit in FullyShardedDataParallel.fsdp_modules(wrapped):
        flat: Any = unit._flat_param
        if unit._has_params and flat.requires_grad:
            units.append((flat.numel(), flat.element_size(), list(_intervals(flat))))
    num_shards = parallel.mesh.num_shards

    def parts(rank: int) -> list[int]:
        shard = rank % num_shards
        return [
            max(0, min(end, (shard + 1) * size) - max(start, shard * size)) * itemsize
            for size, itemsize, intervals in units
            for start, end in intervals
        ]

    return _group(parallel, parts)


def _intervals(flat: Any) -> Iterator[tuple[int, int]]:
    """Where each parameter is in the unit's whole flat tensor; padding is between them."""
    start = 0
    for size, is_padding in zip(flat._numels_with_padding, flat._is_padding_mask, strict=True):
        if not is_padding:
            yield start, start + size
        start += size


def _group(parallel: Parallel, parts: Callable[[int], list[int]]) -> tuple[RankGroup, ...]:
    """Groups of ranks with equal parts. If only rank 0 reads the weights, and sends them, it is a separate group."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for rank in range(parallel.num_gpus):
        sends = reads_weights(parallel, rank)
        groups.setdefault((sends, *parts(rank)), []).append(rank)
    return choose_recorded(
        [RankGroup(tuple(ranks), sum(map(block_bytes, parts(ranks[0])))) for ranks in groups.values()]
    )


def reads_weights(parallel: Parallel, rank: int) -> bool:
    """Whether this rank alone reads the weights on the host: the first of each machine (axolotl 0.21 `loaders/model.py`
    `_build_model`), or rank 0 if the weights are staged (`loaders/nf4.py`)."""
    per_machine = parallel.num_gpus // parallel.num_nodes
    first = rank == 0 if parallel.fsdp.stages_packed else rank % per_machine == 0
    return parallel.fsdp.loads_on_host and first


def choose_recorded(groups: Sequence[RankGroup]) -> tuple[RankGroup, ...]:
    """The groups, with those marked that are recorded: that of rank 0, the largest, and the last."""
    if len(groups) <= MAX_RECORDED:
        return tuple(groups)
    largest = max(groups, key=lambda group: group.nbytes)
    chosen = {id(groups[0]), id(largest), id(groups[-1])}
    return tuple(replace(group, recorded=id(group) in chosen) for group in groups)
