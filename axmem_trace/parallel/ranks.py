"""Groups of ranks whose shards have equal sizes, and which of these groups are recorded.

FSDP2 shards the first dimension of a parameter. With 97 rows and 8 ranks, the first 7 ranks have 13 rows each and the
last has 6 (torch 2.14 `distributed/fsdp/_fully_shard/_fsdp_param.py`, `torch.chunk`). FSDP1 shards one flat tensor with
all parameters of a unit. So almost every rank has parts of different parameters (`_flat_param.py`, `_ShardParamInfo`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from axmem_trace.ledger import block_bytes
from axmem_trace.recipe.parallel import Parallel

MAX_RECORDED = 3
"""The largest number of groups that are recorded, including the group of rank 0. Each recording takes as long as the
first."""
MAX_STEPPED = 16
"""The same for ranks that differ only in the optimizer's step, which takes a fraction of a second."""


@dataclass(frozen=True, slots=True)
class RankGroup:
    """Ranks whose shards have equal sizes.

    Attributes:
        ranks: in order.
        nbytes: bytes of the shards of trainable parameters, in whole blocks. Memory that depends on these shards is
            largest in the group with the largest value.
        recorded: False: there are too many groups, and no rank of this one holds more than a recorded rank.
    """

    ranks: tuple[int, ...]
    nbytes: int = 0
    recorded: bool = True


def all_alike(num_ranks: int) -> tuple[RankGroup, ...]:
    """One group."""
    return (RankGroup(tuple(range(num_ranks))),)


def group_fsdp2(model: nn.Module, parallel: Parallel) -> tuple[RankGroup, ...]:
    """Groups of ranks with equal local shapes of trainable parameters. Shards of frozen parameters are padded to the
    same size."""
    from torch.distributed.tensor import DTensor

    rows = [
        (each.shape[0], each.numel() // max(each.shape[0], 1) * each.element_size())
        for each in model.parameters()
        if each.requires_grad and isinstance(each, DTensor)
    ]
    num_shards = parallel.mesh.num_shards

    def parts(rank: int) -> list[int]:
        return [rows_of_shard(count, num_shards, rank % num_shards) * size for count, size in rows]

    return _group(parallel, parts, reads=partial(reads_weights, parallel))


def rows_of_shard(rows: int, num_shards: int, shard: int) -> int:
    """The number of rows in one chunk of `torch.chunk`.

    >>> [rows_of_shard(97, 8, shard) for shard in range(8)]
    [13, 13, 13, 13, 13, 13, 13, 6]
    >>> [rows_of_shard(3, 4, shard) for shard in range(4)]
    [1, 1, 1, 0]
    """
    each = -(-rows // num_shards)
    return max(0, min(each, rows - shard * each))


def group_fsdp1(wrapped: Any, parallel: Parallel) -> tuple[RankGroup, ...]:
    """Groups of ranks whose optimizer has parameters of the same sizes; all flat shards have equal sizes.

    The sizes of the optimizer's states decide how the allocator places them, so ranks that hold the same number of bytes
    can differ by gigabytes in what is reserved.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    units = []
    steps_on_gpu_by_parameter = parallel.fsdp.uses_orig_params and not parallel.fsdp.offload_params
    for unit in FullyShardedDataParallel.fsdp_modules(wrapped):
        flat: Any = unit._flat_param
        if unit._has_params and flat.requires_grad and steps_on_gpu_by_parameter:
            units.append((flat.numel(), flat.element_size(), list(_intervals(flat))))
    num_shards = parallel.mesh.num_shards

    def parts(rank: int) -> list[int]:
        shard = rank % num_shards
        return [
            max(0, min(end, (shard + 1) * size) - max(start, shard * size)) * itemsize
            for size, itemsize, intervals in units
            for start, end in intervals
        ]

    return _group(parallel, parts, reads=lambda rank: False, most=MAX_STEPPED)  # all load alike on their GPUs


def alike_but_for_step(groups: Sequence[RankGroup], own: int) -> tuple[int, ...]:
    """FSDP1: the first rank of each other group that is recorded."""
    return tuple(group.ranks[0] for group in groups if group.recorded and own not in group.ranks)


def _intervals(flat: Any) -> Iterator[tuple[int, int]]:
    """The range of each parameter in the unit's full flat tensor. Between the ranges is padding."""
    start = 0
    for size, is_padding in zip(flat._numels_with_padding, flat._is_padding_mask, strict=True):
        if not is_padding:
            yield start, start + size
        start += size


def _group(
    parallel: Parallel, parts: Callable[[int], list[int]], reads: Callable[[int], bool], most: int = MAX_RECORDED
) -> tuple[RankGroup, ...]:
    """Groups of ranks with equal parts. A rank that reads the weights and sends them to the others is in another group
    than these."""
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for rank in range(parallel.num_gpus):
        groups.setdefault((reads(rank), tuple(parts(rank))), []).append(rank)
    found = [RankGroup(tuple(ranks), sum(map(block_bytes, sizes))) for (_, sizes), ranks in groups.items()]
    return choose_recorded(found, most)


def reads_weights(parallel: Parallel, rank: int) -> bool:
    """Whether this rank reads the weights into host memory and the others do not: the first rank of each machine
    (axolotl 0.21 `loaders/model.py` `_build_model`), or rank 0 if the weights are staged (`loaders/nf4.py`)."""
    per_machine = parallel.num_gpus // parallel.num_nodes
    first = rank == 0 if parallel.fsdp.stages_packed else rank % per_machine == 0
    return parallel.fsdp.loads_on_host and first


def choose_recorded(groups: Sequence[RankGroup], most: int = MAX_RECORDED) -> tuple[RankGroup, ...]:
    """The groups, in which those to record are marked: the group of rank 0, the largest, the last, and some between them."""
    if len(groups) <= most:
        return tuple(groups)
    largest = max(range(len(groups)), key=lambda index: groups[index].nbytes)
    chosen = {0, largest, len(groups) - 1}
    evenly = (index * len(groups) // most for index in range(most))
    chosen.update(sorted(set(evenly) - chosen)[: most - len(chosen)])
    return tuple(replace(group, recorded=index in chosen) for index, group in enumerate(groups))
