"""The ledger's phases, step by step: the peak of each, with its buckets. All bytes are block bytes.

A phase's peak includes what was alive when it began, as `torch.cuda.max_memory_allocated` does after
`reset_peak_memory_stats` (which sets the peak to the current level).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from axmem_trace.ledger.allocation import BUCKETS, NEVER, Allocation, Bucket, Phase
from axmem_trace.ledger.columns import Columns
from axmem_trace.ledger.intervals import SpanKey, measure_heights
from axmem_trace.ledger.ledger import Ledger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Span:
    """All intervals of one phase of one step, taken together."""

    phase: Phase
    step: int
    peak_bytes: int = -1
    peak_live: tuple[int, ...] = (0,) * len(BUCKETS)
    peak_tick: int = NEVER
    """`NEVER`: the peak is the level at its beginning."""
    peak_allocation: Allocation | None = None
    """The allocation that raised the level to the peak."""
    end_bytes: int = 0

    @property
    def key(self) -> SpanKey:
        """Phase and step: the same key as in the reservation's peaks."""
        return self.phase, self.step

    @property
    def buckets(self) -> dict[Bucket, int]:
        """Block bytes of each bucket that are alive at its peak."""
        return dict(zip(BUCKETS, self.peak_live, strict=True))


@dataclass
class Survey:
    """The spans in order of first appearance, and the highest of them."""

    ledger: Ledger
    spans: dict[SpanKey, Span] = field(default_factory=dict)

    @property
    def peak(self) -> Span:
        """The span with the most live bytes; of equal spans, the one that reached them first."""
        ranked = sorted(self.spans.values(), key=lambda span: (-span.peak_bytes, span.peak_tick))
        return ranked[0] if ranked else Span(phase="load", step=0)


def survey(ledger: Ledger) -> Survey:
    """The peak of each phase of each step, and the bytes of each bucket at that time."""
    found, reached = Survey(ledger), dict[SpanKey, int]()
    for interval, begin, high, position in measure_heights(ledger.intervals, ledger.live_bytes):
        span = found.spans.setdefault(interval.key, Span(phase=interval.mark.phase, step=interval.mark.step))
        if begin > span.peak_bytes:
            span.peak_bytes, span.peak_tick, span.peak_allocation = begin, NEVER, None
            reached[span.key] = interval.start
        if high > span.peak_bytes:
            span.peak_bytes, span.peak_tick = high, int(ledger.moved.ticks[position])
            span.peak_allocation = ledger.allocations[int(ledger.moved.indices[position])]
            reached[span.key] = position + 1
        span.end_bytes = int(ledger.live_bytes[interval.end - 1]) if interval.end else 0
    for key, live in zip(reached, _live_by_bucket(ledger, list(reached.values())), strict=True):
        found.spans[key].peak_live = live
    return found


def _live_by_bucket(ledger: Ledger, positions: list[int]) -> list[tuple[int, ...]]:
    """Live bytes of each bucket after the first N moves, for each N in `positions`."""
    import numpy as np

    _, indices, frees = ledger.moved
    buckets = ledger.columns.codes(lambda kind: BUCKETS.index(kind.bucket))[indices]
    sizes = ledger.columns.block_bytes[indices]
    changes = np.where(frees, -sizes, sizes)
    live, done = np.zeros(len(BUCKETS), dtype=np.int64), 0
    found: dict[int, tuple[int, ...]] = {}
    for position in sorted(set(positions)):
        part, which = changes[done:position], buckets[done:position]
        live = live + np.array([part[which == bucket].sum() for bucket in range(len(BUCKETS))], dtype=np.int64)
        found[position], done = tuple(live.tolist()), position
    return [found[position] for position in positions]


def most_alive(columns: Columns, chosen: NDArray[np.bool_]) -> tuple[int, NDArray[np.intp]]:
    """The most raw bytes of the chosen allocations that are alive at the same time, and the positions of these
    allocations. Of equal moments, the first."""
    import numpy as np

    indices = np.flatnonzero(chosen)
    ends = indices[columns.freed_tick[indices] != NEVER]
    ticks = np.concatenate([columns.allocated_tick[indices], columns.freed_tick[ends]])
    deltas = np.concatenate([columns.nbytes[indices], -columns.nbytes[ends]])
    order = np.lexsort((deltas, ticks))  # at the same tick, frees (negative) come first, as in `Allocation.alive`
    levels = np.cumsum(deltas[order])
    if not len(levels) or levels.max() <= 0:
        return 0, indices[:0]
    best = int(levels.argmax(0))
    alive = indices[columns.alive(int(ticks[order[best]]))[indices]]
    most_bytes = int(levels[best])
    assert columns.nbytes[alive].sum() == most_bytes, "the live allocations do not add up"
    return most_bytes, alive


def last_forward_end(ledger: Ledger) -> tuple[int, int]:
    """First and last tick of the last forward of the last step; `(0, -1)` if no forward was recorded."""
    intervals = ledger.intervals
    for position in range(len(intervals) - 1, -1, -1):
        if intervals[position].mark.phase == "forward":
            is_last = position + 1 == len(intervals)
            end = ledger.ticks + 1 if is_last else intervals[position + 1].mark.tick
            return intervals[position].mark.tick, end - 1
    return 0, -1
