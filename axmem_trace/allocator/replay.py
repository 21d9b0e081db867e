"""`replay`: the ledger's allocations and frees, one after the other, through the caching allocator."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from axmem_trace.allocator.blocks import Block
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.allocator.reservation import OutOfMemory, Reservation
from axmem_trace.ledger import NEVER, Ledger, Mark, Phase
from axmem_trace.recipe.recipe import Allocator

Item = tuple[int, int, "Mark | int | None"]
"""An entry of the agenda: the tick, a rank for the order within one tick, and what happens: a new phase, the position of
an allocation that other streams are done with, or None for `empty_cache`."""


def replay(ledger: Ledger, allocator: Allocator, *, capacity_bytes: int = 0) -> Reservation:
    """What CUDA's caching allocator would have held during the recording.

    Args:
        ledger: what the run allocated; only the GPU's allocations count, and those of 0 bytes need no memory.
        allocator: the allocator's settings. Another backend than `native` is replayed as if it were `native`
            (`describe_settings` says so).
        capacity_bytes: what the allocator could get: the card's memory less the CUDA context; 0: unlimited memory.

    Returns:
        The reservation; its `out_of_memory` says if and where the run ended because memory was not enough.
    """
    return Replay(ledger, CachingAllocator(allocator, capacity_bytes=capacity_bytes)).run()


@dataclass
class Replay:
    """One replay: the allocator, the blocks in use by position in the ledger, and the peaks found so far.

    The order within one tick: streams finish, then `empty_cache`, then the mark of a new phase, then allocations and
    frees.
    """

    ledger: Ledger
    caching: CachingAllocator
    blocks: dict[int, Block] = field(default_factory=dict)
    peaks: dict[tuple[Phase, int], int] = field(default_factory=dict)
    allocated_peaks: dict[tuple[Phase, int], int] = field(default_factory=dict)
    active_peaks: dict[tuple[Phase, int], int] = field(default_factory=dict)
    allocated_ends: dict[tuple[Phase, int], int] = field(default_factory=dict)
    out_of_memory: OutOfMemory | None = None
    _busy: dict[int, Block] = field(default_factory=dict)
    """Freed blocks that another stream works on, by position in the ledger."""
    _span: tuple[Phase, int] | None = None
    """The current (phase, step); None before the first mark, which counts as loading."""
    _peak: tuple[int, int, int, int] = (0, 0, 0, 0)
    """The peak of reserved bytes; the tick, allocated bytes and number of segments at that time."""

    def run(self) -> Reservation:
        """Replays the whole ledger, or stops where the card's memory is not enough."""
        accounts, caching, blocks = self.caching.accounts, self.caching, self.blocks
        columns, agenda = self.ledger.columns, self._make_agenda()
        sizes, streams = columns.nbytes.tolist(), columns.codes(lambda kind: kind.stream).tolist()
        due = agenda[-1][0]
        for tick, index, dies in self.ledger.moves():
            while tick >= due:
                due = self._attend(agenda)
            accounts.tick = tick
            if dies:
                self._free(index)
                continue
            nbytes = sizes[index]
            if nbytes == 0:
                continue
            block = caching.malloc(nbytes, index, streams[index])
            if accounts.high_reserved_bytes > self._peak[0]:
                high = accounts.high_reserved_bytes
                self._peak = (high, tick, accounts.allocated_bytes, accounts.num_segments)
            if block is None:
                self.out_of_memory = self._make_out_of_memory(index, nbytes)
                break
            blocks[index] = block
        while due < NEVER and self.out_of_memory is None:
            due = self._attend(agenda)
        self._close_span()
        return self._make_reservation()

    def _free(self, index: int) -> None:
        """Frees the block now; if another stream works on it, `_attend` does it when that stream is done."""
        block, is_busy = self.blocks.pop(index, None), index in self._busy_until
        if block is not None:
            self.caching.free(block, busy=is_busy)
            if is_busy:
                self._busy[index] = block

    @cached_property
    def _busy_until(self) -> dict[int, int]:
        """By position in the ledger: when other streams are done with a block that has been freed."""
        ticks = self.ledger.columns.codes(lambda kind: kind.busy_until).tolist()
        return {index: tick for index, tick in enumerate(ticks) if tick}

    def _make_agenda(self) -> list[Item]:
        """All other events, the last one first; the list begins with an event that never happens."""
        agenda: list[Item] = [(tick, -1, None) for tick in self.ledger.empty_cache_ticks]
        agenda += [(tick, -2, index) for index, tick in self._busy_until.items()]
        agenda += [(mark.tick, rank, mark) for rank, mark in enumerate(self.ledger.marks)]
        agenda.append((NEVER, 0, None))
        return sorted(agenda, key=lambda item: item[:2], reverse=True)

    def _attend(self, agenda: list[Item]) -> int:
        """Does the next event of the agenda; returns the tick of the one after it."""
        tick, _, what = agenda.pop()
        self.caching.accounts.tick = tick
        if what is None:
            self.caching.empty_cache()
        elif isinstance(what, Mark):
            self._close_span()
            self._span = (what.phase, what.step)
        elif what in self._busy:
            self.caching.finish(self._busy.pop(what))
        return agenda[-1][0]

    def _close_span(self) -> None:
        """Stores the peaks since the last mark and the bytes left, and resets the peaks to the current level."""
        accounts, span = self.caching.accounts, self._span or ("load", 0)
        if self._span is None and not accounts.high_reserved_bytes:
            return
        for peaks, high in ((self.peaks, accounts.high_reserved_bytes),
                            (self.active_peaks, accounts.high_active_bytes),
                            (self.allocated_peaks, accounts.high_allocated_bytes)):  # fmt: skip
            peaks[span] = max(peaks.get(span, 0), high)
        self.allocated_ends[span] = accounts.allocated_bytes
        accounts.reset_highs()

    def _make_out_of_memory(self, index: int, nbytes: int) -> OutOfMemory:
        accounts = self.caching.accounts
        return OutOfMemory(
            tick=accounts.tick,
            index=index,
            requested_bytes=nbytes,
            allocated_bytes=accounts.allocated_bytes,
            reserved_bytes=accounts.reserved_bytes,
            capacity_bytes=min(accounts.capacity_bytes, accounts.allowed_bytes),
        )

    def _make_reservation(self) -> Reservation:
        accounts = self.caching.accounts
        peak_reserved_bytes, peak_tick, allocated_at_peak_bytes, num_segments = self._peak
        return Reservation(
            timeline=tuple(accounts.changes),
            peaks=self.peaks,
            allocated_peaks=self.allocated_peaks,
            active_peaks=self.active_peaks,
            allocated_ends=self.allocated_ends,
            peak_reserved_bytes=peak_reserved_bytes,
            peak_allocated_bytes=max(self.allocated_peaks.values(), default=0),
            peak_active_bytes=max(self.active_peaks.values(), default=0),
            peak_tick=peak_tick,
            allocated_at_peak_bytes=allocated_at_peak_bytes,
            num_segments=num_segments,
            num_retries=accounts.num_retries,
            out_of_memory=self.out_of_memory,
        )
