"""One pass over the ledger's allocations and frees: the peak of each phase of each step. All bytes are block bytes.

A phase's peak includes what was alive when it began, as `torch.cuda.max_memory_allocated` does after
`reset_peak_memory_stats` (which sets the peak to the current level).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from axmem_trace.ledger.allocation import BUCKETS, NEVER, Allocation, Bucket, Mark, Phase
from axmem_trace.ledger.ledger import Ledger

SpanKey = tuple[Phase, int]
"""A phase and its step."""


@dataclass
class Span:
    """All stretches of one phase of one step, taken together."""

    phase: Phase
    step: int
    peak_bytes: int = -1
    peak_live: tuple[int, ...] = (0,) * len(BUCKETS)
    peak_tick: int = NEVER
    """`NEVER`: the peak is the level at its beginning."""
    peak_allocation: Allocation | None = None
    """The allocation with which the peak was reached."""
    end_bytes: int = 0

    @property
    def key(self) -> SpanKey:
        """Phase and step, as the reservation's peaks are keyed."""
        return self.phase, self.step

    @property
    def buckets(self) -> dict[Bucket, int]:
        """Block bytes alive at its peak, of each bucket."""
        return dict(zip(BUCKETS, self.peak_live, strict=True))


class Level(NamedTuple):
    """Live bytes after an allocation or a free."""

    tick: int
    live_bytes: int
    allocation: Allocation
    span: Span


@dataclass
class Survey:
    """The spans in order of first appearance, the highest of them, and every level in order of time."""

    spans: dict[SpanKey, Span] = field(default_factory=dict)
    levels: list[Level] = field(default_factory=list)

    @property
    def peak(self) -> Span:
        """The span with the most live bytes; of equal ones, the first that reached them."""
        ranked = sorted(self.spans.values(), key=lambda span: (-span.peak_bytes, span.peak_tick))
        return ranked[0] if ranked else Span(phase="load", step=0)


def survey(ledger: Ledger) -> Survey:
    """Walks the ledger's GPU allocations once, keeping live bytes per bucket."""
    found, live, live_bytes = Survey(), [0] * len(BUCKETS), 0
    column = {bucket: index for index, bucket in enumerate(BUCKETS)}
    moves = ledger.moves()

    def enter(mark: Mark) -> Span:
        entered = found.spans.setdefault((mark.phase, mark.step), Span(phase=mark.phase, step=mark.step))
        if live_bytes > entered.peak_bytes:
            entered.peak_bytes, entered.peak_live = live_bytes, tuple(live)
            entered.peak_tick, entered.peak_allocation = NEVER, None
        entered.end_bytes = live_bytes
        return entered

    for mark, start, end in ledger.stretches:
        span = enter(mark)
        for tick, index, dies in islice(moves, end - start):
            allocation = ledger.allocations[index]
            delta = -allocation.block_bytes if dies else allocation.block_bytes
            live[column[allocation.bucket]] += delta
            live_bytes += delta
            span.end_bytes = live_bytes
            if live_bytes > span.peak_bytes:
                span.peak_bytes, span.peak_live = live_bytes, tuple(live)
                span.peak_tick, span.peak_allocation = tick, allocation
            found.levels.append(Level(tick, live_bytes, allocation, span))
    return found


def most_alive(allocations: Iterable[Allocation]) -> tuple[int, tuple[Allocation, ...]]:
    """The most raw bytes of these allocations alive at one time, and the allocations; the first of equal points."""
    chosen = tuple(allocations)
    changes = [(each.born, each.nbytes) for each in chosen]
    changes += [(each.died, -each.nbytes) for each in chosen if each.died != NEVER]
    live_bytes = most_bytes = best_tick = 0
    for tick, delta in sorted(changes):  # at one tick frees (negative) come first, as in `Allocation.alive`
        live_bytes += delta
        if live_bytes > most_bytes:
            most_bytes, best_tick = live_bytes, tick
    alive = tuple(each for each in chosen if each.alive(best_tick)) if most_bytes else ()
    assert sum(each.nbytes for each in alive) == most_bytes, "the live allocations do not add up"
    return most_bytes, alive


def last_forward_end(ledger: Ledger) -> tuple[int, int]:
    """First and last tick of the last forward of the last step; `(0, -1)` if no forward was recorded."""
    stretches = ledger.stretches
    for position in range(len(stretches) - 1, -1, -1):
        if stretches[position].mark.phase == "forward":
            is_last = position + 1 == len(stretches)
            end = ledger.ticks + 1 if is_last else stretches[position + 1].mark.tick
            return stretches[position].mark.tick, end - 1
    return 0, -1
