"""The parts of a report that are about several GPUs. All sizes are bytes, as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RankUse:
    """Ranks that hold parts of equal sizes, and what one of them needs. Rank 0 is in the first row: `peak` is its peak.

    Attributes:
        ranks: their numbers, as in `0-6, 8`.
        count: how many.
        basis: `recorded`, or `at most`: too many ranks differ, and none of these needs more than these figures.
        worst: no other row needs more; the verdict is for these.
        allocated_bytes, active_bytes, counted_bytes, reserved_bytes, device_bytes: as in `Peak`.
        host_bytes: the most host memory at any time, without what the system maps of files; of the first of these ranks,
            which may collect the whole model to save it.
    """

    ranks: str
    count: int
    basis: Literal["recorded", "at most"] = "recorded"
    worst: bool = False
    allocated_bytes: int
    active_bytes: int
    counted_bytes: int
    reserved_bytes: int
    device_bytes: int
    phase: str
    step: int
    host_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineUse:
    """Host memory of one machine, for all its ranks; of several machines, the one that needs the most.

    Attributes:
        gpus: ranks of it.
        loading_bytes: weights that are there while its ranks load, at most; what is mapped of files is shared by them.
        held_bytes: the most of each rank at any time, added up: pinned memory, offloaded parts, the optimizer's states.
        why: how the weights are loaded, and where that is written.
    """

    gpus: int
    loading_bytes: int
    held_bytes: int
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """One kind of memory among several GPUs: the maximum that a rank holds, raw bytes.

    Attributes:
        name: `weights`, `adapters`, `gradients`, `optimizer` or `gathered parameters`.
        sharded_bytes: this rank's part.
        replicated_bytes: each rank has all of it.
        gathered_bytes: parameters that this rank has whole for a while, by exchange with the others.
    """

    name: str
    sharded_bytes: int = 0
    replicated_bytes: int = 0
    gathered_bytes: int = 0
