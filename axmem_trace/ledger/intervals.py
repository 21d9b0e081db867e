"""From one mark to the next: the only place that walks a level (allocated, active, reserved bytes) phase by phase.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from axmem_trace.ledger.allocation import Mark, Phase

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SpanKey = tuple[Phase, int]
"""A phase and its step: all intervals with the same key are one span."""


class Interval(NamedTuple):
    """What happens between two marks, by positions in a sequence of events: from `start` to before `end`."""

    mark: Mark
    start: int
    end: int

    @property
    def key(self) -> SpanKey:
        """Phase and step."""
        return self.mark.phase, self.mark.step


class Height(NamedTuple):
    """How high a level was in a interval.

    Attributes:
        begin_bytes: when the interval began.
        high_bytes: the highest level after an event of it; 0 without events.
        position: the first event with which it was reached; -1 without events.
    """

    interval: Interval
    begin_bytes: int
    high_bytes: int
    position: int

    @property
    def peak_bytes(self) -> int:
        """As `torch.cuda.max_memory_allocated` after `reset_peak_memory_stats`, which sets the peak to the current level."""
        return max(self.begin_bytes, self.high_bytes)


def measure_heights(
    intervals: Iterable[Interval], levels: NDArray[np.int64], begins: Sequence[int] | None = None
) -> Iterator[Height]:
    """The heights of a level, interval by interval.

    Args:
        levels: bytes after each event.
        begins: bytes when each interval begins; None: those after the event before it.
    """
    for number, interval in enumerate(intervals):
        _, start, end = interval
        begin = begins[number] if begins is not None else int(levels[start - 1]) if start else 0
        if start == end:
            yield Height(interval, begin, 0, -1)
            continue
        position = start + int(levels[start:end].argmax(0))
        yield Height(interval, begin, int(levels[position]), position)


def peaks_by_span(heights: Iterable[Height]) -> dict[SpanKey, int]:
    """The highest level of each span, in order of first appearance."""
    peaks: dict[SpanKey, int] = {}
    for height in heights:
        peaks[height.interval.key] = max(peaks.get(height.interval.key, 0), height.peak_bytes)
    return peaks
