"""The phases of a run and its timeline, from the spans of a ledger. All bytes are block bytes.

A phase's peak includes what was alive when it began, as `torch.cuda.max_memory_allocated` does after
`reset_peak_memory_stats` (which sets the peak to the current level).
"""

from __future__ import annotations

from axmem_trace.allocator.reservation import Reservation
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.spans import Span, Survey
from axmem_trace.report.types import Buckets, PhaseUse, TimelinePoint

NUM_TIMELINE_POINTS = 600
"""The number of points to which the timeline is reduced: about the width of a large screen in pixels."""


def make_phases(found: Survey, reservation: Reservation) -> dict[str, PhaseUse]:
    """`load`, `step_1`, ..., `eval`, `save` in order of time; each step has its parts."""
    groups: dict[str, list[Span]] = {}
    for span in found.spans.values():
        name = "load" if span.phase == "load" else f"step_{span.step}" if span.step else _outside_steps(span)
        groups.setdefault(name, []).append(span)
    return {name: _phase_use(name, spans, reservation) for name, spans in groups.items()}


def _outside_steps(span: Span) -> str:
    return "save" if span.phase == "save" else "eval"


_PARTS = ("generate", "score", "forward", "backward", "optimizer")
"""The phases of a step in order of time. A rollout begins after the mark of the first forward."""


def _place_in_step(span: Span) -> int:
    return _PARTS.index(span.phase)


def _phase_use(name: str, spans: list[Span], reservation: Reservation) -> PhaseUse:
    highest = max(spans, key=lambda span: span.peak_bytes)
    reached = highest.peak_allocation
    parts: dict[str, PhaseUse] = {}
    if name.startswith("step_"):
        parts = {span.phase: _phase_use("", [span], reservation) for span in sorted(spans, key=_place_in_step)}
    counted = max(highest.peak_bytes, *(reservation.allocated_peaks.get(span.key, 0) for span in spans))
    return PhaseUse(
        allocated_bytes=highest.peak_bytes,
        active_bytes=max(counted, *(reservation.active_peaks.get(span.key, 0) for span in spans)),
        reserved_bytes=max(reservation.peaks.get(span.key, 0) for span in spans),
        end_bytes=spans[-1].end_bytes,
        counted_bytes=counted,
        counted_end_bytes=max(spans[-1].end_bytes, reservation.allocated_ends.get(spans[-1].key, 0)),
        module=reached.module if reached else "",
        op=reached.op if reached else "",
        buckets=Buckets(**highest.buckets),
        phases=parts,
    )


def make_timeline(ledger: Ledger, reservation: Reservation) -> tuple[TimelinePoint, ...]:
    """A reduced list of levels: the first highest level of each group of equally many events, and the last level."""
    levels, (ticks, indices, _) = ledger.live_bytes, ledger.moved
    size = -(-len(levels) // NUM_TIMELINE_POINTS) or 1
    positions = [start + int(levels[start : start + size].argmax(0)) for start in range(0, len(levels), size)]
    if positions and positions[-1] != len(levels) - 1:
        positions.append(len(levels) - 1)
    points, intervals, number = [], ledger.intervals, 0
    for position in positions:
        while intervals[number].end <= position:
            number += 1
        mark, reached, tick = intervals[number].mark, ledger.allocations[int(indices[position])], int(ticks[position])
        points.append(
            TimelinePoint(
                tick=tick,
                allocated_bytes=int(levels[position]),
                reserved_bytes=reservation.reserved_at(tick),
                phase=mark.phase,
                step=mark.step,
                module=reached.module,
                op=reached.op,
            )
        )
    return tuple(points)
