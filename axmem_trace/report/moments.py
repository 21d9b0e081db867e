"""One pass over the ledger's births and deaths: peaks, phases and the timeline. Blocks throughout.

A phase's peak includes what was alive when it began, as `torch.cuda.max_memory_allocated` does after
`reset_peak_memory_stats` (which sets the peak to the current level).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from axmem_trace.ledger import BUCKETS, NEVER, Allocation, Event, Ledger, Mark, Phase
from axmem_trace.report.types import Buckets, PhaseUse, TimelinePoint

NUM_TIMELINE_POINTS = 600
"""The timeline is thinned to about as many points as a wide screen has columns of pixels."""
SpanKey = tuple[Phase, int]


class ReservedBytes(Protocol):
    """What the report needs of a `Reservation`: see `axmem_trace.allocator`."""

    @property
    def peak_reserved_bytes(self) -> int:
        """High-water mark of all that the caching allocator held."""

    @property
    def peaks(self) -> Mapping[SpanKey, int]:
        """High-water mark within each (phase, step)."""

    def reserved_at(self, tick: int) -> int:
        """What the caching allocator held after a tick."""


@dataclass
class Span:
    """All stretches of one phase of one step, taken together."""

    phase: Phase
    step: int
    peak_bytes: int = -1
    peak_live: tuple[int, ...] = (0,) * len(BUCKETS)
    peak_event: Event | None = None
    end_bytes: int = 0

    def see(self, live_bytes: int, live: list[int], event: Event | None) -> None:
        """Takes note of a level; the first of equal levels is kept."""
        self.end_bytes = live_bytes
        if live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_live, self.peak_event = live_bytes, tuple(live), event

    @property
    def buckets(self) -> Buckets:
        return Buckets(**dict(zip(BUCKETS, self.peak_live, strict=True)))


@dataclass
class Survey:
    """The spans in order of first appearance, the highest of them, and every level in order of time."""

    spans: dict[SpanKey, Span] = field(default_factory=dict)
    levels: list[tuple[Event, int, SpanKey]] = field(default_factory=list)

    @property
    def peak(self) -> Span:
        """The span with the most live bytes; of equals one that reached them itself, not one that began with them."""
        ranked = sorted(self.spans.values(), key=lambda span: (-span.peak_bytes, span.peak_event is None))
        return ranked[0] if ranked else Span(phase="load", step=0)


def survey(ledger: Ledger) -> Survey:
    """Walks the ledger once, keeping live bytes per bucket."""
    found, live, live_bytes = Survey(), [0] * len(BUCKETS), 0
    marks = sorted(ledger.marks, key=lambda mark: mark.tick)
    if not marks or marks[0].tick > 0:
        marks.insert(0, Mark(tick=0, phase="load", step=0))
    position, span = 0, Span(phase="load", step=0)
    column = {bucket: index for index, bucket in enumerate(BUCKETS)}

    def enter(mark: Mark) -> Span:
        entered = found.spans.setdefault((mark.phase, mark.step), Span(phase=mark.phase, step=mark.step))
        entered.see(live_bytes, live, None)
        return entered

    for event in ledger.events():
        while position < len(marks) and marks[position].tick <= event.tick:
            span, position = enter(marks[position]), position + 1
        live[column[event.allocation.bucket]] += event.delta
        live_bytes += event.delta
        span.see(live_bytes, live, event)
        found.levels.append((event, live_bytes, (span.phase, span.step)))
    for mark in marks[position:]:
        enter(mark)
    return found


def make_phases(found: Survey, reservation: ReservedBytes) -> dict[str, PhaseUse]:
    """`load`, `step_1`, ..., `eval` in order of time, each step with its parts."""
    groups: dict[str, list[Span]] = {}
    for span in found.spans.values():
        name = span.phase if span.phase in ("load", "eval") else f"step_{span.step}"
        groups.setdefault(name, []).append(span)
    return {name: _phase_use(name, spans, reservation) for name, spans in groups.items()}


def _phase_use(name: str, spans: list[Span], reservation: ReservedBytes) -> PhaseUse:
    highest = max(spans, key=lambda span: span.peak_bytes)
    event = highest.peak_event
    parts = {span.phase: _phase_use("", [span], reservation) for span in spans} if name.startswith("step_") else {}
    return PhaseUse(
        allocated_bytes=highest.peak_bytes,
        reserved_bytes=max(reservation.peaks.get((span.phase, span.step), 0) for span in spans),
        end_bytes=spans[-1].end_bytes,
        module=event.allocation.module if event else "",
        op=event.allocation.op if event else "",
        buckets=highest.buckets,
        phases=parts,
    )


def make_timeline(found: Survey, reservation: ReservedBytes) -> tuple[TimelinePoint, ...]:
    """The levels, thinned: of each stretch of equally many events the highest one (the first of equals), and the last."""
    stretch = -(-len(found.levels) // NUM_TIMELINE_POINTS) or 1
    points = []
    for start in range(0, len(found.levels), stretch):
        points.append(max(found.levels[start : start + stretch], key=lambda level: level[1]))
    if points and points[-1] is not found.levels[-1]:
        points.append(found.levels[-1])
    return tuple(
        TimelinePoint(
            tick=event.tick,
            allocated_bytes=live_bytes,
            reserved_bytes=reservation.reserved_at(event.tick),
            phase=phase,
            step=step,
            module=event.allocation.module,
            op=event.allocation.op,
        )
        for event, live_bytes, (phase, step) in points
    )


def most_alive(allocations: Iterable[Allocation]) -> tuple[int, tuple[Allocation, ...]]:
    """The most raw bytes of these allocations alive at one time, and those allocations; the first of equal moments."""
    chosen = tuple(allocations)
    changes = [(each.born, each.nbytes) for each in chosen]
    changes += [(each.died, -each.nbytes) for each in chosen if each.died != NEVER]
    live_bytes = most_bytes = best_tick = 0
    for tick, delta in sorted(changes):  # at one tick deaths (negative) come first, as `Allocation.alive` has it
        live_bytes += delta
        if live_bytes > most_bytes:
            most_bytes, best_tick = live_bytes, tick
    alive = tuple(each for each in chosen if each.alive(best_tick)) if most_bytes else ()
    assert sum(each.nbytes for each in alive) == most_bytes, "allocations alive at the moment do not add up to its bytes"
    return most_bytes, alive


def last_forward_end(ledger: Ledger) -> tuple[int, int]:
    """First and last tick of the last forward of the last step; `(0, -1)` where no forward was recorded."""
    marks = sorted(ledger.marks, key=lambda mark: mark.tick)
    for position in range(len(marks) - 1, -1, -1):
        if marks[position].phase == "forward":
            end = marks[position + 1].tick if position + 1 < len(marks) else ledger.ticks + 1
            return marks[position].tick, end - 1
    return 0, -1
