"""`Reservation`: the memory that the caching allocator reserved during a recording."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from axmem_trace.ledger import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """The request for which the card did not have enough memory, even after all cached memory had been freed.

    Attributes:
        tick: the time of the request.
        index: the allocation, by its position in the ledger.
        requested_bytes: the requested size.
        allocated_bytes, reserved_bytes: allocated and reserved bytes at that time.
        capacity_bytes: the largest number of bytes that could be reserved.
    """

    tick: int
    index: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Reserved bytes over time, and further figures of the allocator.

    A block can be larger than its allocation rounded up to 512 bytes: without expandable segments, a large block keeps
    a rest of up to 1 MiB, and `roundup_power2_divisions` rounds further. PyTorch counts whole blocks. So
    `peak_allocated_bytes` (the value of `torch.cuda.max_memory_allocated`) can exceed the ledger's peak. With
    expandable segments and without such rounding, they are equal.

    "Active" bytes (`torch.cuda.memory_stats()["active_bytes.all.peak"]`, axolotl's `memory/max_active`) are the
    allocated bytes, and freed bytes that another stream still uses. With a single stream, they are the allocated bytes.

    Attributes:
        timeline: (tick, reserved bytes) after each change, in order of time.
        peaks, allocated_peaks, active_peaks: the peaks of reserved, allocated and active bytes in each (phase, step).
            As after `torch.cuda.reset_peak_memory_stats`, the level at the beginning of a phase counts too.
        allocated_ends: allocated bytes (`torch.cuda.memory_allocated`) when each (phase, step) ended for the last time.
        peak_reserved_bytes: the peak of the whole recording. `peak_tick` is the time when it was first reached;
            `allocated_at_peak_bytes` and `num_segments` are the allocated bytes and the number of segments at that
            time.
        num_retries: number of requests for which the cache had to be emptied first.
        out_of_memory: None, or the request at which the run ended. All other figures are then those before this
            request.
    """

    timeline: tuple[tuple[int, int], ...]
    peaks: Mapping[tuple[Phase, int], int]
    allocated_peaks: Mapping[tuple[Phase, int], int]
    allocated_ends: Mapping[tuple[Phase, int], int]
    peak_reserved_bytes: int
    peak_allocated_bytes: int
    peak_tick: int
    allocated_at_peak_bytes: int
    num_segments: int
    active_peaks: Mapping[tuple[Phase, int], int] = field(default_factory=dict)
    peak_active_bytes: int = 0
    num_retries: int = 0
    out_of_memory: OutOfMemory | None = None

    @property
    def fragmentation_bytes(self) -> int:
        """Bytes that are reserved but not allocated at the peak of reserved bytes: fragments, and cached blocks of
        other sizes."""
        return self.peak_reserved_bytes - self.allocated_at_peak_bytes

    def reserved_at(self, tick: int) -> int:
        """Reserved bytes after all events of `tick`."""
        position = bisect_right(self.timeline, (tick, float("inf")))
        return self.timeline[position - 1][1] if position else 0
