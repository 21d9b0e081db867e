"""The parts of a report that are about several GPUs. All sizes are bytes, as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axmem_trace.report.moments import Moment


@dataclass(frozen=True, kw_only=True, slots=True)
class RankUse:
    """Ranks whose shards have equal sizes, and the memory that one of them needs. Rank 0 is in the first row; `peak` is
    its peak.

    Attributes:
        ranks: their numbers, as in `0-6, 8`.
        count: how many ranks.
        basis: `recorded`; or `at most` if too many ranks differ: then the figures are those of the recorded rank that needs
            the most.
        worst: whether no other row needs more; the verdict is about these ranks.
        allocated_bytes, active_bytes, counted_bytes, reserved_bytes, device_bytes: as in `Peak`.
        moments: as `Report.moments`, fewer, of the first of these ranks, if it was recorded and is not rank 0; empty unless
            they are requested.
        host_bytes: the most host memory at any time, without mapped files. It is that of the first of these ranks,
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
    moments: tuple[Moment, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineUse:
    """Host memory of one machine, for all its ranks. With several machines, it is the machine that needs the most.

    Attributes:
        gpus: the number of its ranks.
        loading_bytes: the most bytes of weights in host memory while its ranks load. The ranks share mapped files.
        held_bytes: the most bytes of each rank at any time, summed: pinned memory, offloaded shards, optimizer states.
        why: how the weights are loaded, and the source that says so.
    """

    gpus: int
    loading_bytes: int
    held_bytes: int
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """One kind of memory with several GPUs: the maximum on one rank, in raw bytes.

    Attributes:
        name: `weights`, `adapters`, `gradients`, `optimizer` or `gathered parameters`.
        sharded_bytes: this rank's shards.
        replicated_bytes: tensors that each rank has in full.
        gathered_bytes: full parameters that this rank has for a short time, after an all-gather.
    """

    name: str
    sharded_bytes: int = 0
    replicated_bytes: int = 0
    gathered_bytes: int = 0
