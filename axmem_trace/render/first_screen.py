"""The first screen: the verdict and its reasons, in at most 24 lines of a terminal with 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from axmem_trace.render.describe import describe_engine, describe_moment, describe_verdict, logged_lines, needed_bytes
from axmem_trace.render.hints import PLAIN_DTYPES, list_hints
from axmem_trace.render.lines import alert_lines, describe_refusals
from axmem_trace.report.holders import LAYER_WEIGHTS
from axmem_trace.units import format_bytes, gib

if TYPE_CHECKING:
    from axmem_trace.report.report import Report

MAX_LINES = 24
"""The number of lines that a terminal shows without scrolling."""
_SIZES = ((5, 2, 3), (5, 1, 3), (4, 1, 3), (3, 1, 3), (3, 0, 3), (3, 0, 2), (2, 0, 1), (1, 0, 1), (0, 0, 1))
"""Numbers of holders, hints and lines of warnings to try, from most to fewest, until everything fits."""
SHOWN_HOST_BYTES = 1 << 30
"""Host memory below this size is not shown."""
NARROW = 72
_STYLES = {
    "fits with room": "bold green",
    "fits": "bold green",
    "tight": "bold yellow",
    "does not fit": "bold red",
    "cannot say": "bold yellow",
    "": "bold",
}
_GLYPHS = "█▓▒░·"
_ASCII_GLYPHS = "#=+-."


class Line(NamedTuple):
    """One line that is already short enough, and its style (of rich)."""

    text: str
    style: str = ""


def write_first_screen(report: Report, width: int, *, ascii_only: bool = False) -> list[Line]:
    """At most `MAX_LINES` lines of at most `width` columns (from 80 on; a narrower terminal may need more).

    If there is not enough space, the ends of lists are left out, and the warnings only if nothing else helps. The full
    report has everything.
    """
    head = [*_verdict(report, width), *_bar(report, width, _ASCII_GLYPHS if ascii_only else _GLYPHS), Line("")]
    logged, sureness = [*_logged(report, width), Line("")], _sureness(report, width)
    for num_holders, num_hints, min_alerts in _SIZES:
        body = [*head, *logged, *_peak(report, width, num_holders), Line("")]
        tail = [*_hints(report, width, num_hints), *sureness]
        room = MAX_LINES - len(body) - len(tail)
        alerts = _alerts(report, width, max(room, min_alerts))
        if len(alerts) <= room:
            break
    return [*body, *alerts, *tail]


def _wrap(text: str, width: int, style: str = "", *, indent: str = "", most: int = 0) -> list[Line]:
    """The text in lines. With `most`, at most that many lines; a shortened text ends in `…`."""
    lines = textwrap.wrap(text, width, subsequent_indent=indent, max_lines=most or None, placeholder=" …")
    return [Line(line, style) for line in lines]


def _verdict(report: Report, width: int) -> Iterator[Line]:
    if report.refusals:
        yield from _wrap(f"THIS RUN CAN'T RUN: {describe_refusals(report)}", width, "bold red")
    yield from _wrap(describe_verdict(report), width, _STYLES[report.verdict])
    if report.why:
        yield from _wrap(report.why, width, indent="  ", most=2)
    if report.varying_rows is not None:
        yield from _wrap(report.varying_rows.text, width, indent="  ", most=3)
    if report.engine is not None:
        yield from _wrap(describe_engine(report.engine), width, indent="  ", most=2)
    failure = report.out_of_memory
    if failure is not None:
        moment = describe_moment(failure.phase, failure.step)
        words = f"an allocation of {format_bytes(failure.requested_bytes)} fails in {moment} ({failure.holder})"
        yield from _wrap(words, width, indent="  ", most=2)
    run = report.run
    if "ranks" in run:
        yield from _wrap(run["ranks"], width, most=1)
    what = f"{report.model.name}: {run.get('method', '')}, base {run.get('base', '')}, {run.get('batch', '')}"
    yield from _wrap(what, width, "dim", indent="  ", most=2)


def _bar(report: Report, width: int, glyphs: str) -> Iterator[Line]:
    """The card's memory at the peak, to scale; if more is needed, `|` is the end of the card.

    `weights` include a reference model. `states` are adapters, gradients and optimizer states. `activations` include
    temporary tensors. `cached` is the allocator's additional reserved memory, and the CUDA context.
    """
    need, buckets, card = needed_bytes(report), report.buckets, report.gpu.memory_bytes
    parts = [
        ("weights", buckets.weights + buckets.reference),
        ("states", buckets.adapters + buckets.gradients + buckets.optimizer),
        ("activations", buckets.activations + buckets.workspace),
        ("cached", need - buckets.total),
    ]
    scale = max(card, need)
    filled = "".join(
        glyph * (_column(end, scale, width) - _column(end - size, scale, width))
        for glyph, size, end in zip(glyphs, (size for _, size in parts), _running_sums(parts), strict=False)
    )
    bar = filled + glyphs[-1] * (width - len(filled)) if card else filled
    if card and need > card:
        end = min(_column(card, scale, width), width - 1)
        bar = f"{bar[:end]}|{bar[end + 1 :]}"
    yield Line(bar[:width], _STYLES[report.verdict].removeprefix("bold "))
    legend = [f"{glyph} {name} {gib(size):.2f}" for glyph, (name, size) in zip(glyphs, parts, strict=False)]
    if card > need:
        legend.append(f"{glyphs[-1]} free {gib(card - need):.2f}")
    yield from _wrap("  ".join(legend), width, "dim")


def _running_sums(parts: Sequence[tuple[str, int]]) -> Iterator[int]:
    total = 0
    for _, size in parts:
        total += size
        yield total


def _column(nbytes: int, scale: int, width: int) -> int:
    return round(nbytes * width / scale) if scale else 0


MAX_VERSION = 6
"""The longest version of axolotl for which the label has space, in characters (`0.21.0`)."""


def _logged(report: Report, width: int) -> Iterator[Line]:
    """The lines that axolotl logs. It resets the peaks when the model is loaded, and after each logged line. TRL's
    trainers do not log memory (axolotl's `log` in `core/trainers/base.py` is used only in supervised training)."""
    label_width, gap, names, widths = 24, "  ", ("max_active", "max_allocated", "device_reserved"), (10, 13, 15)
    if width < NARROW:
        label_width, gap, names, widths = 13, " ", ("active", "allocated", "reserved"), (7, 9, 8)
    heads = gap.join(f"{name:>{size}}" for name, size in zip(names, widths, strict=True))
    logs = report.run.get("log") != "none"
    version = report.axolotl.version
    heading = f"axolotl {version} logs GiB" if version and len(version) <= MAX_VERSION else "axolotl will log (GiB)"
    wide, narrow = (heading, "axolotl: GiB") if logs else ("GiB (nothing logs it)", "GiB")
    yield Line(f"{wide if width >= NARROW else narrow:{label_width}}{heads}", "bold")
    for label, figures in logged_lines(report):
        cells = gap.join(f"{gib(figure):>{size}.2f}" for figure, size in zip(figures, widths, strict=True))
        yield Line(f"  {label:{label_width - 2}}{cells}")
    if report.host.cpu.peak_bytes >= SHOWN_HOST_BYTES:
        yield Line(f"in addition to the GPU: {format_bytes(report.host.cpu.peak_bytes)} of host memory")


def _peak(report: Report, width: int, num_holders: int) -> Iterator[Line]:
    peak = report.peak
    when = describe_moment(peak.phase, peak.step)
    words = f" ({peak.holder})" if peak.holder else ""
    yield from _wrap(f"highest in {when}{words}: {format_bytes(peak.allocated_bytes)} allocated, of it", width, "bold")
    for holder in report.holders[:num_holders]:
        base = report.run.get("base", "").replace(" (", ", ").removesuffix(")")
        packed = f" ({base})" if holder.name == LAYER_WEIGHTS and base not in PLAIN_DTYPES else ""
        yield from _wrap(f"{format_bytes(holder.bytes):>10}  {holder.name}{packed}", width, indent=" " * 12)


def _alerts(report: Report, width: int, room: int) -> list[Line]:
    """The reasons why the run is impossible, and the warnings: as many as there is space for. The rest is counted."""
    alerts = [line for _, lines in alert_lines(report) for line in lines]
    shown: list[Line] = []
    for index, text in enumerate(alerts):
        left = room - len(shown) - (1 if index + 1 < len(alerts) else 0)
        if left < 1:
            shown.append(Line(f"and {len(alerts) - index} more: --full", "bold red"))
            break
        shown += _wrap(f"! {text}", width, "red", indent="  ", most=min(2, left))
    return shown


def _hints(report: Report, width: int, most: int) -> Iterator[Line]:
    for hint in list_hints(report)[:most]:
        yield from _wrap(f"try {hint}", width, indent="  ", most=2)


def _sureness(report: Report, width: int) -> list[Line]:
    """The accuracy of the figures, and where to find everything else."""
    assumed, unmodelled = (len(report.by_kind.get(kind, ())) for kind in ("assumed", "not_modelled"))
    parts = [f"{assumed} assumed, {unmodelled} not modelled"]
    if report.accuracy.text and not (unmodelled and report.accuracy.measured):
        parts.insert(0, report.accuracy.text)
    if report.device_range.runs:
        low, high = gib(report.device_range.low_bytes), gib(report.device_range.high_bytes)
        parts.insert(0, f"nvidia-smi {low:.1f} to {high:.1f} GiB, as in {report.device_range.runs} measured runs")
    return _wrap(f"{'; '.join(parts)}; all the rest: --full", width, "dim", indent="  ")
