"""The timeline of a report as a matplotlib picture, for a notebook (`report.plot()`; the extra `plot`)."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from axmem_trace.render.colors import COLORS
from axmem_trace.render.describe import describe_moment
from axmem_trace.units import gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from axmem_trace.report.report import Report

SIZE = (10, 4)


def plot_timeline(report: Report, axes: Axes | None = None) -> Axes:
    """Draws GiB over the moments of the run: stacked by purpose if the report has moments, else only the sum.

    Args:
        axes: the axes to draw on; None: a new figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the report has neither moments nor a timeline (a brief JSON has none).
    """
    points: Any = report.moments or report.timeline
    if not points:
        raise ValueError("this report has no timeline: save it with --format json --full")
    axes = axes or _new_axes()
    numbers = range(len(points))
    if report.moments:
        used = [name for name in COLORS if any(getattr(moment.buckets, name) for moment in report.moments)]
        levels = [[gib(getattr(moment.buckets, name)) for moment in report.moments] for name in used]
        axes.stackplot(numbers, levels, labels=used, colors=[COLORS[name] for name in used])
    else:
        axes.fill_between(numbers, [gib(point.allocated_bytes) for point in points], label="allocated", alpha=0.7)
    axes.plot(numbers, [gib(point.reserved_bytes) for point in points], color="0.45", linewidth=1.2, label="reserved")
    _mark_card(report, axes)
    _mark_phases(points, axes)
    axes.set(xlim=(0, max(1, len(points) - 1)), ylim=(0, None), ylabel="GiB", title=report.model.name)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'axmem_trace[plot]'") from error
    return pyplot.subplots(figsize=SIZE, layout="constrained")[1]


def _mark_card(report: Report, axes: Axes) -> None:
    """Draws a line at the memory that PyTorch may reserve on the card."""
    outside = report.peak.device_bytes - report.peak.reserved_bytes
    if report.gpu.memory_bytes > outside:
        card = gib(report.gpu.memory_bytes - outside)
        axes.axhline(card, color="#b3261e", linestyle="--", label=f"{report.gpu.name} for PyTorch")


def _mark_phases(points: Any, axes: Axes) -> None:
    """Draws a line at the beginning of each phase, and its name below."""
    places, names, start = [], [], 0
    for (phase, step), group in groupby(points, key=lambda point: (point.phase, point.step)):
        length = len(list(group))
        if start:
            axes.axvline(start, color="0.5", linewidth=0.5, alpha=0.5)
        places.append(start + length / 2)
        names.append(describe_moment(phase, step))
        start += length
    axes.set_xticks(places, names, rotation=40, ha="right", fontsize=8)
