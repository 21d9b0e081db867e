"""`Reservation`: what the caching allocator held over a recording."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from axmem_trace.ledger import Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemory:
    """The request for which the card had not enough memory, even after everything cached had been freed.

    Attributes:
        tick: when.
        index: the allocation, by its position in the ledger.
        requested_bytes: what was requested.
        allocated_bytes, reserved_bytes: what was in use and what was held at that time.
        capacity_bytes: the most that could have been held.
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

    A block can be larger than the 512-byte rounding of what it holds: without expandable segments a rest of up to 1 MiB
    stays with a large block, and `roundup_power2_divisions` rounds further. PyTorch counts whole blocks, so
    `peak_allocated_bytes` (what `torch.cuda.max_memory_allocated` would return) can exceed the ledger's peak;
    with expandable segments and no such rounding they are equal.

    "Active" bytes (`torch.cuda.memory_stats()["active_bytes.all.peak"]`, axolotl's `memory/max_active`) are those allocated,
    and those freed while another stream still worked on them. With a single stream they are the allocated ones.

    Attributes:
        timeline: (tick, reserved bytes) wherever they changed, in order of time.
        peaks, allocated_peaks, active_peaks: high-water marks of reserved, allocated and active bytes within each (phase,
            step); as after `torch.cuda.reset_peak_memory_stats`, a phase begins with what is held at its beginning.
        allocated_ends: allocated bytes when each (phase, step) ended for the last time: `torch.cuda.memory_allocated`.
        peak_reserved_bytes: the high-water mark of all; `peak_tick` is when it was first reached, and
            `allocated_at_peak_bytes`, `num_segments` are the allocated bytes and the number of segments at that time.
        num_retries: requests that first had to empty the cache.
        out_of_memory: None, or the request at which the run ended; all other figures are then those before it.
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
        """Bytes reserved but not allocated at the peak of reserved bytes: fragments, and caches for other sizes."""
        return self.peak_reserved_bytes - self.allocated_at_peak_bytes

    def reserved_at(self, tick: int) -> int:
        """Reserved bytes after everything that happened at `tick`."""
        position = bisect_right(self.timeline, (tick, float("inf")))
        return self.timeline[position - 1][1] if position else 0
