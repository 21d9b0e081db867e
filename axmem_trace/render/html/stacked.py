"""The timeline of a page: allocated memory stacked by purpose, with the phases as bands and the card as a line.

Widths are in percent, so the picture fits any page. Each part of a phase has a minimum width, so that the optimizer's
few large operators are visible among thousands of small ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from axmem_trace.render.describe import describe_moment
from axmem_trace.report.types import Buckets
from axmem_trace.units import format_bytes, gib

if TYPE_CHECKING:
    from axmem_trace.report.moments import Moment
    from axmem_trace.report.report import Report

BUCKETS = tuple(each.name for each in fields(Buckets))
LEAST_POINTS = 7
"""The minimum width of a part of a phase, in points."""
MAX_CARD_RATIO = 2.5
"""If a card has more memory than this multiple of the highest point, only its name is shown: its line would make the
picture too flat."""
HEADROOM = 1.06


class Stretch(NamedTuple):
    """One phase without interruption: its moments, and its position in percent of the width."""

    phase: str
    step: int
    moments: tuple[Moment, ...]
    left: float
    width: float


def lay_out(moments: Sequence[Moment]) -> list[Stretch]:
    """The phases in order of time."""
    groups = [(key, tuple(group)) for key, group in groupby(moments, key=lambda moment: (moment.phase, moment.step))]
    total = sum(max(len(group), LEAST_POINTS) for _, group in groups)
    stretches, left = [], 0.0
    for (phase, step), group in groups:
        width = 100 * max(len(group), LEAST_POINTS) / total
        stretches.append(Stretch(phase, step, group, left, width))
        left += width
    return stretches


def positions(stretches: Sequence[Stretch]) -> list[float]:
    """The position of each moment in percent of the width."""
    return [
        stretch.left + stretch.width * (index + 0.5) / len(stretch.moments)
        for stretch in stretches
        for index in range(len(stretch.moments))
    ]


def draw_stacked(report: Report, moments: Sequence[Moment] | None = None) -> str:
    """The picture of a report with moments; empty for a report without moments.

    Args:
        moments: those of another rank, in a picture that is not clicked into; None: the report's own.
    """
    is_own = moments is None
    moments = report.moments if moments is None else moments
    if not moments:
        return ""
    stretches = lay_out(moments)
    xs = positions(stretches)
    highest = max(max(moment.allocated_bytes, moment.reserved_bytes) for moment in moments) or 1
    card = _card_bytes(report)
    top = int(HEADROOM * max(highest, card if card <= MAX_CARD_RATIO * highest else 0))
    peak = peak_index(moments)
    picture = "".join((*_grid(top), *_areas(moments, xs, top), _reserved(moments, xs, top), *_card_line(card, top)))
    label = f"allocated memory over time, at most {format_bytes(moments[peak].allocated_bytes)}"
    svg = (
        f"<svg viewBox='0 0 100 100' preserveAspectRatio='none' role='img' aria-label='{escape(label)}'>{picture}</svg>"
    )
    words = "".join((*_labels(top), *_bands(stretches), *_card_name(card, top, report)))
    chart, mark = (" id='chart'", " id='mark'") if is_own else ("", "")
    return f"<div class='chart'{chart}>{svg}{words}<div class='mark'{mark} style='left:{xs[peak]:.2f}%'></div></div>"


def peak_index(moments: Sequence[Moment]) -> int:
    """The moment with the most allocated bytes."""
    return max(range(len(moments)), key=lambda index: moments[index].allocated_bytes)


def _card_bytes(report: Report) -> int:
    """The bytes that the allocator may reserve: the card's memory without the CUDA context and NCCL's buffers."""
    outside = report.peak.device_bytes - report.peak.reserved_bytes
    return max(0, report.gpu.memory_bytes - outside)


def _areas(moments: Sequence[Moment], xs: Sequence[float], top: int) -> Iterator[str]:
    lower = [0] * len(moments)
    for name in BUCKETS:
        upper = [below + getattr(moment.buckets, name) for below, moment in zip(lower, moments, strict=True)]
        if upper != lower:
            points = [*_points(xs, upper, top), *reversed(_points(xs, lower, top))]
            yield f"<polygon class='{name}' points='{' '.join(points)}'><title>{name}</title></polygon>"
        lower = upper


def _points(xs: Sequence[float], levels: Sequence[int], top: int) -> list[str]:
    """The points of a curve. The first and the last level continue to the edges of the picture."""
    inner = [f"{x:.2f},{_y(level, top):.2f}" for x, level in zip(xs, levels, strict=True)]
    return [f"0,{_y(levels[0], top):.2f}", *inner, f"100,{_y(levels[-1], top):.2f}"]


def _y(nbytes: int, top: int) -> float:
    return 100 * (1 - nbytes / top)


def _reserved(moments: Sequence[Moment], xs: Sequence[float], top: int) -> str:
    levels = [moment.reserved_bytes for moment in moments]
    return (
        f"<polyline class='reserved' points='{' '.join(_points(xs, levels, top))}'><title>reserved</title></polyline>"
    )


def _ticks(top: int) -> list[int]:
    """Four or five round numbers of bytes."""
    step = 1 << 10
    while top / step > 5:
        step *= 2
    return list(range(0, top, step))


def _grid(top: int) -> Iterator[str]:
    for tick in _ticks(top):
        yield f"<line class='grid' x1='0' x2='100' y1='{_y(tick, top):.2f}' y2='{_y(tick, top):.2f}'/>"


def _labels(top: int) -> Iterator[str]:
    for tick in _ticks(top):
        yield f"<span class='y' style='bottom:{100 - _y(tick, top):.2f}%'>{escape(_round(tick))}</span>"


def _round(nbytes: int) -> str:
    """A round size without trailing zeros."""
    return format_bytes(nbytes).replace(".00 ", " ").replace(".0 ", " ")


def _card_line(card: int, top: int) -> Iterator[str]:
    if 0 < card <= top:
        yield f"<line class='limit' x1='0' x2='100' y1='{_y(card, top):.2f}' y2='{_y(card, top):.2f}'/>"


def _card_name(card: int, top: int, report: Report) -> Iterator[str]:
    if card:
        above = "" if card <= top else ", above this picture"
        place = f"bottom:{min(100 - _y(card, top), 97):.2f}%"
        words = f"{report.gpu.name}: {gib(card):.2f} GiB for PyTorch{above}"
        yield f"<span class='cardname' style='{place}'>{escape(words)}</span>"


def _bands(stretches: Sequence[Stretch]) -> Iterator[str]:
    for each in stretches:
        title = escape(describe_moment(each.phase, each.step))
        yield (
            f"<div class='band' style='left:{each.left:.2f}%;width:{each.width:.2f}%' title='{title}'>"
            f"{escape(each.phase)}</div>"
        )
    for step, group in groupby(
        stretches, key=lambda each: each.step if each.phase not in ("load", "eval", "save") else 0
    ):
        members = list(group)
        if step:
            width = members[-1].left + members[-1].width - members[0].left
            yield (f"<div class='band step' style='left:{members[0].left:.2f}%;width:{width:.2f}%'>step {step}</div>")
