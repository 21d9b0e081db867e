"""`replay`: runs the ledger's allocations and frees through the caching allocator, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from axmem_trace.allocator.blocks import Block, BlockPool
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.allocator.plan import Item, Plan
from axmem_trace.allocator.reservation import OutOfMemory, Reservation
from axmem_trace.ledger import NEVER, Ledger
from axmem_trace.ledger.allocation import BEFORE_ALL
from axmem_trace.ledger.intervals import Interval, measure_heights, peaks_by_span
from axmem_trace.recipe.recipe import Allocator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def replay(ledger: Ledger, allocator: Allocator, *, capacity_bytes: int = 0) -> Reservation:
    """The memory that CUDA's caching allocator reserves during the recording.

    Args:
        ledger: the allocations of the run. Only those on the GPU count, and those of 0 bytes need no memory.
        allocator: the allocator's settings. A backend other than `native` is replayed as if it were `native`
            (`describe_settings` makes a note of it).
        capacity_bytes: the memory that the allocator can get: the card's memory minus the CUDA context; 0: unlimited
            memory.

    Returns:
        The reservation. Its `out_of_memory` says whether and where the run ended because there was not enough memory.
    """
    return Replay(ledger, CachingAllocator(allocator, capacity_bytes=capacity_bytes)).run()


@dataclass
class Replay:
    """One replay: the allocator, the blocks in use by position in the ledger, and the data to find the peaks.

    The order within one tick is: streams finish, `empty_cache`, the mark of a new phase, allocations and frees.
    """

    ledger: Ledger
    caching: CachingAllocator
    blocks: dict[int, Block] = field(default_factory=dict)
    """The blocks in use, if a history is recorded or if several streams use a block."""
    out_of_memory: OutOfMemory | None = None
    _taken: list[int] = field(default_factory=list)
    """For each allocation, the size of its block."""
    _addresses: list[int] = field(default_factory=list)
    """For each allocation, the address of its block while the block is in use, else -1. Empty if `blocks` is used."""
    _busy: dict[int, Block] = field(default_factory=dict)
    """Freed blocks that another stream still uses, by position in the ledger."""
    _busy_levels: list[int] = field(default_factory=list)
    """Bytes of such blocks after each move, if there are any in the replay."""
    _begun: list[_Beginning] = field(default_factory=list)
    _num_played: int = 0
    """The number of moves before the end of the run."""
    _peak: tuple[int, int, int] = (0, -1, 0)
    """The peak of reserved bytes, the allocation that raised it, and the number of segments at that time."""

    def __post_init__(self) -> None:
        self._plan = Plan(self.ledger, self.caching)

    def run(self) -> Reservation:
        """Replays the whole ledger, or stops at the first allocation for which the card's memory is not enough."""
        count = len(self.ledger.allocations)
        self._taken, self._addresses = [0] * count, [-1] * count
        agenda, intervals = self._plan.make_agenda(), self.ledger.intervals
        ends = [*(interval.mark.tick for interval in intervals[1:]), NEVER]
        for interval, end_tick in zip(intervals, ends, strict=True):
            self._begin(interval)
            self._play_interval(interval, end_tick, agenda)
            if self.out_of_memory is not None:
                break
        return self._make_reservation()

    def _begin(self, interval: Interval) -> None:
        accounts = self.caching.accounts
        self._begun.append(_Beginning(interval, accounts.reserved_bytes, accounts.busy_bytes, len(accounts.changes)))

    def _play_interval(self, interval: Interval, end_tick: int, agenda: list[Item]) -> None:
        """Replays the moves of an interval, and the events of the agenda before its last tick and at the tick of the
        next mark."""
        start = interval.start
        while agenda and agenda[-1][0] <= end_tick:
            due = max(start, min(interval.end, int(self.ledger.moved.ticks.searchsorted(agenda[-1][0]))))
            self._play(start, due)
            if self.out_of_memory is not None:
                return
            start = due
            self._attend(agenda.pop())
        self._play(start, interval.end)

    def _play(self, start: int, end: int) -> None:
        """Replays the moves from `start` to before `end`."""
        self._num_played = end
        moves = [column[start:end] for column in self.ledger.moved]
        if self.caching.accounts.history is not None or self._plan.busy_until:
            self._play_blocks(zip(*(column.tolist() for column in moves), strict=True))
        else:
            kept = ~self._plan.ends_brief[start:end]
            self._play_addresses(zip(*(column[kept].tolist() for column in moves), strict=True))

    def _play_addresses(self, moves: Iterable[tuple[int, int, bool]]) -> None:
        """Replays the moves without an object for each block, and does only what `CachingAllocator.malloc` and `free`
        do.

        If the next move frees an allocation and a free block is large enough for it, nothing changes.
        """
        pools, sizes, brief = self._plan.pools, self._plan.sizes, self._plan.brief
        taken, addresses = self._taken, self._addresses
        for tick, index, frees in moves:
            pool = pools[index]
            if frees:
                address = addresses[index]
                if address >= 0:
                    pool.give(address, taken[index])
            elif size := sizes[index]:
                if brief[index] and pool.serves(size):
                    taken[index] = size
                    continue
                found = pool.take(size) or self._make_space(pool, size, tick, index)
                if found is None:
                    return
                addresses[index], taken[index] = found
                if brief[index]:
                    pool.give(*found)

    def _make_space(self, pool: BlockPool, size: int, tick: int, index: int) -> tuple[int, int] | None:
        accounts = self.caching.accounts
        accounts.tick, accounts.owner = tick, index
        found = self.caching.make_space(pool, size)
        self._note_peak(index)
        if found is None:
            self._stop(index)
        return found

    def _play_blocks(self, moves: Iterable[tuple[int, int, bool]]) -> None:
        """Replays the moves with a block for each allocation: the history is recorded, and blocks may be busy."""
        caching, accounts = self.caching, self.caching.accounts
        requested, streams = self.ledger.columns.nbytes, self._plan.streams
        busy_until = self._plan.busy_until
        for tick, index, frees in moves:
            accounts.tick = tick
            if frees:
                block = self.blocks.pop(index, None)
                if block is not None:
                    caching.free(block, busy=index in busy_until)  # `_attend` frees it when the stream has finished
                    if index in busy_until:
                        self._busy[index] = block
            elif nbytes := int(requested[index]):
                block = caching.malloc(nbytes, index, streams[index])
                self._note_peak(index)
                if block is None:
                    self._stop(index)
                    return
                self.blocks[index], self._taken[index] = block, block.size
            self._busy_levels.append(accounts.busy_bytes)

    def _note_peak(self, index: int) -> None:
        accounts = self.caching.accounts
        if accounts.high_reserved_bytes > self._peak[0]:
            self._peak = accounts.high_reserved_bytes, index, accounts.num_segments

    def _stop(self, index: int) -> None:
        """Ends the run at an allocation for which there is no memory."""
        accounts = self.caching.accounts
        self._num_played = self._position_of(index)
        levels = self._levels()
        self.out_of_memory = OutOfMemory(
            tick=accounts.tick,
            index=index,
            requested_bytes=int(self.ledger.columns.nbytes[index]),
            allocated_bytes=int(levels[-1]) if len(levels) else 0,
            reserved_bytes=accounts.reserved_bytes,
            capacity_bytes=min(accounts.capacity_bytes, accounts.allowed_bytes),
        )

    def _position_of(self, index: int) -> int:
        """The position of an allocation among the moves."""
        return int((self.ledger.moved.indices == index).argmax())

    def _attend(self, item: Item) -> None:
        """Handles an event of the agenda."""
        tick, _, index = item
        self.caching.accounts.tick = tick
        if index is None:
            self.caching.empty_cache()
        elif index in self._busy:
            self.caching.finish(self._busy.pop(index))

    def _make_reservation(self) -> Reservation:
        import numpy as np

        accounts = self.caching.accounts
        peak_reserved_bytes, peak_index, num_segments = self._peak
        changes = np.array([reserved_bytes for _, reserved_bytes in accounts.changes], dtype=np.int64)
        starts = [*(each.num_changes for each in self._begun), len(changes)]
        if self._begun[0].interval.mark is BEFORE_ALL and not changes[: starts[1]].any():
            self._begun, starts = self._begun[1:], starts[1:]  # nothing was reserved before the first mark
        begun, allocated = self._begun, self._levels()
        intervals = [each.interval._replace(end=min(each.interval.end, self._num_played)) for each in begun]
        changed = [Interval(each.interval.mark, *part) for each, part in zip(begun, pairwise(starts), strict=True)]
        heights = list(measure_heights(intervals, allocated))
        peaks = peaks_by_span(measure_heights(changed, changes, [each.reserved_bytes for each in begun]))
        allocated_peaks = active_peaks = peaks_by_span(heights)
        if any(self._busy_levels):
            active = allocated + np.array(self._busy_levels, dtype=np.int64)
            begins = [height.begin_bytes + each.busy_bytes for height, each in zip(heights, begun, strict=True)]
            active_peaks = peaks_by_span(measure_heights(intervals, active, begins))
        ends = {
            height.interval.key: int(allocated[height.interval.end - 1]) if height.interval.end else 0
            for height in heights
        }
        reached = min(self._position_of(peak_index), len(allocated) - 1) if peak_index >= 0 else -1
        return Reservation(
            timeline=tuple(accounts.changes),
            peaks=peaks,
            allocated_peaks=allocated_peaks,
            active_peaks=active_peaks,
            allocated_ends=ends,
            peak_reserved_bytes=peak_reserved_bytes,
            peak_allocated_bytes=max(allocated_peaks.values(), default=0),
            peak_active_bytes=max(active_peaks.values(), default=0),
            peak_tick=int(self.ledger.columns.allocated_tick[peak_index]) if peak_index >= 0 else 0,
            allocated_at_peak_bytes=int(allocated[reached]) if reached >= 0 else 0,
            num_segments=num_segments,
            num_retries=accounts.num_retries,
            out_of_memory=self.out_of_memory,
        )

    def _levels(self) -> NDArray[np.int64]:
        """Bytes of the blocks in use after each move, up to the end of the run."""
        import numpy as np

        _, indices, frees = (column[: self._num_played] for column in self.ledger.moved)
        sizes = np.array(self._taken, dtype=np.int64)[indices]
        return np.cumsum(np.where(frees, -sizes, sizes), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The allocator's bytes at the beginning of an interval, and how often its reserved bytes had changed."""

    interval: Interval
    reserved_bytes: int
    busy_bytes: int
    num_changes: int
