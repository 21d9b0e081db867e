"""Intervals from one mark to the next. Only this module follows a level (allocated, active or reserved bytes) phase by
phase.

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
    """The events between two marks: those at the positions from `start` to before `end` in a sequence of events."""

    mark: Mark
    start: int
    end: int

    @property
    def key(self) -> SpanKey:
        """Phase and step."""
        return self.mark.phase, self.mark.step


class Height(NamedTuple):
    """The height of a level in an interval.

    Attributes:
        begin_bytes: the level when the interval began.
        high_bytes: the highest level after one of its events; 0 without events.
        position: the first event after which the level was that high; -1 without events.
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
        begins: bytes at the beginning of each interval; None: the bytes after the event before it.
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
