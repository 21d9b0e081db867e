"""One pass over the ledger's births and deaths: peaks, phases and the timeline. Blocks throughout.

A phase's peak includes what was alive when it began, as `torch.cuda.max_memory_allocated` does after
`reset_peak_memory_stats` (which sets the peak to the current level).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from axmem_trace.ledger import BUCKETS, NEVER, Allocation, Ledger, Mark, Phase
from axmem_trace.report.types import Buckets, PhaseUse, TimelinePoint

NUM_TIMELINE_POINTS = 600
"""The timeline is thinned to about as many points as a wide screen has columns of pixels."""
SpanKey = tuple[Phase, int]


class FailedRequest(Protocol):
    """What the report needs of the allocator's `OutOfMemory`: when, which allocation of the ledger, how much."""

    @property
    def tick(self) -> int:
        """When."""

    @property
    def index(self) -> int:
        """Position of the allocation in `Ledger.allocations`."""

    @property
    def requested_bytes(self) -> int:
        """What was asked for."""


class ReservedBytes(Protocol):
    """What the report needs of a `Reservation`: see `axmem_trace.allocator`."""

    @property
    def out_of_memory(self) -> FailedRequest | None:
        """The request at which a card of the given size ended the run."""

    @property
    def peak_allocated_bytes(self) -> int:
        """High-water mark of allocated blocks, with what the allocator could not split off them."""

    @property
    def peak_reserved_bytes(self) -> int:
        """High-water mark of all that the caching allocator held."""

    @property
    def peaks(self) -> Mapping[SpanKey, int]:
        """High-water mark within each (phase, step)."""

    @property
    def allocated_peaks(self) -> Mapping[SpanKey, int]:
        """The same of allocated blocks, with what the allocator could not split off them."""

    @property
    def allocated_ends(self) -> Mapping[SpanKey, int]:
        """Such blocks when each (phase, step) had ended."""

    def reserved_at(self, tick: int) -> int:
        """What the caching allocator held after a tick."""


@dataclass
class Span:
    """All stretches of one phase of one step, taken together."""

    phase: Phase
    step: int
    peak_bytes: int = -1
    peak_live: tuple[int, ...] = (0,) * len(BUCKETS)
    peak_tick: int = NEVER
    """`NEVER`: the most live bytes were those it began with."""
    peak_allocation: Allocation | None = None
    """What was born when the peak was reached."""
    end_bytes: int = 0

    @property
    def key(self) -> SpanKey:
        """Phase and step, as the reservation's peaks are keyed."""
        return self.phase, self.step

    @property
    def buckets(self) -> Buckets:
        """What was alive at its peak."""
        return Buckets(**dict(zip(BUCKETS, self.peak_live, strict=True)))


class Level(NamedTuple):
    """Live bytes after a birth or death."""

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
        """The span with the most live bytes; of equals the one that reached them first."""
        ranked = sorted(self.spans.values(), key=lambda span: (-span.peak_bytes, span.peak_tick))
        return ranked[0] if ranked else Span(phase="load", step=0)


def survey(ledger: Ledger) -> Survey:
    """Walks the ledger's GPU allocations once, keeping live bytes per bucket."""
    found, live, live_bytes = Survey(), [0] * len(BUCKETS), 0
    column = {bucket: index for index, bucket in enumerate(BUCKETS)}
    marks = sorted(ledger.marks, key=lambda mark: mark.tick)
    if not marks or marks[0].tick > 0:
        marks.insert(0, Mark(tick=0, phase="load", step=0))
    position, span = 0, Span(phase="load", step=0)

    def enter(mark: Mark) -> Span:
        entered = found.spans.setdefault((mark.phase, mark.step), Span(phase=mark.phase, step=mark.step))
        if live_bytes > entered.peak_bytes:
            entered.peak_bytes, entered.peak_live = live_bytes, tuple(live)
            entered.peak_tick, entered.peak_allocation = NEVER, None
        entered.end_bytes = live_bytes
        return entered

    for tick, index, dies in ledger.moves():
        while position < len(marks) and marks[position].tick <= tick:
            span, position = enter(marks[position]), position + 1
        allocation = ledger.allocations[index]
        delta = -allocation.block_bytes if dies else allocation.block_bytes
        live[column[allocation.bucket]] += delta
        live_bytes += delta
        span.end_bytes = live_bytes
        if live_bytes > span.peak_bytes:
            span.peak_bytes, span.peak_live = live_bytes, tuple(live)
            span.peak_tick, span.peak_allocation = tick, allocation
        found.levels.append(Level(tick, live_bytes, allocation, span))
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
    reached = highest.peak_allocation
    parts: dict[str, PhaseUse] = {}
    if name.startswith("step_"):
        parts = {span.phase: _phase_use("", [span], reservation) for span in spans}
    return PhaseUse(
        allocated_bytes=highest.peak_bytes,
        reserved_bytes=max(reservation.peaks.get(span.key, 0) for span in spans),
        end_bytes=spans[-1].end_bytes,
        counted_bytes=max(highest.peak_bytes, *(reservation.allocated_peaks.get(span.key, 0) for span in spans)),
        counted_end_bytes=max(spans[-1].end_bytes, reservation.allocated_ends.get(spans[-1].key, 0)),
        module=reached.module if reached else "",
        op=reached.op if reached else "",
        buckets=highest.buckets,
        phases=parts,
    )


def make_timeline(found: Survey, reservation: ReservedBytes) -> tuple[TimelinePoint, ...]:
    """The levels, thinned: of each stretch of equally many events the first highest one, and the last of all."""
    stretch = -(-len(found.levels) // NUM_TIMELINE_POINTS) or 1
    points = []
    for start in range(0, len(found.levels), stretch):
        points.append(max(found.levels[start : start + stretch], key=lambda level: level.live_bytes))
    if points and points[-1] is not found.levels[-1]:
        points.append(found.levels[-1])
    return tuple(
        TimelinePoint(
            tick=level.tick,
            allocated_bytes=level.live_bytes,
            reserved_bytes=reservation.reserved_at(level.tick),
            phase=level.span.phase,
            step=level.span.step,
            module=level.allocation.module,
            op=level.allocation.op,
        )
        for level in points
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
    assert sum(each.nbytes for each in alive) == most_bytes, "what is alive at the moment does not add up"
    return most_bytes, alive


def last_forward_end(ledger: Ledger) -> tuple[int, int]:
    """First and last tick of the last forward of the last step; `(0, -1)` where no forward was recorded."""
    marks = sorted(ledger.marks, key=lambda mark: mark.tick)
    for position in range(len(marks) - 1, -1, -1):
        if marks[position].phase == "forward":
            end = marks[position + 1].tick if position + 1 < len(marks) else ledger.ticks + 1
            return marks[position].tick, end - 1
    return 0, -1
