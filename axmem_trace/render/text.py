"""The report for a terminal, drawn with rich. It is plain if the stream is not a terminal, and ASCII if the encoding
requires it."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from axmem_trace.render.describe import describe_fit, describe_model, describe_peak, headline
from axmem_trace.render.first_screen import write_first_screen
from axmem_trace.render.lines import alert_lines, choice_lines, note_lines
from axmem_trace.render.tables import Table, make_tables

if TYPE_CHECKING:
    from rich.console import RenderableType

    from axmem_trace.report.report import Report

DEFAULT_WIDTH = 100
MIN_WIDTH = 40
MAX_WIDTH = 200


def render_text(
    report: Report,
    *,
    full: bool = False,
    depth: int | None = None,
    width: int = DEFAULT_WIDTH,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """The report as lines of at most `width` columns (40 to 200). The text ends in a newline.

    Args:
        full: whether all tables, notes and values are shown; if not, only the first screen.
        depth: all modules down to this depth are shown, instead of the largest.
        color: whether escape codes for colour and bold text are written.
        ascii_only: whether only ASCII characters are used; others are replaced.
    """
    from rich.console import Console

    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    sink = io.StringIO()
    console = Console(
        file=sink,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
        _environ={},
    )
    for part in _parts(report, depth, width, ascii_only) if full else _first_screen(report, width, ascii_only):
        console.print(part)
    lines = "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"
    return lines.encode("ascii", "replace").decode() if ascii_only else lines


def render_for_stream(report: Report, stream: TextIO | None, *, full: bool = False, depth: int | None = None) -> str:
    """The report for a stream, in the stream's encoding. If it is a terminal, its width and colours are used. None: a
    file.

    `NO_COLOR` (https://no-color.org) and `TERM=dumb` turn colours off; `COLUMNS` sets the width.
    """
    terminal = stream is not None and stream.isatty()
    fallback = (DEFAULT_WIDTH, 24)
    # shutil reads COLUMNS first, then the terminal of the real stdout. That terminal is wrong for a file or a pipe.
    columns = shutil.get_terminal_size(fallback).columns if terminal or os.environ.get("COLUMNS") else DEFAULT_WIDTH
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (getattr(stream, "encoding", None) or "utf-8") if stream is not None else "utf-8"
    return render_text(
        report, full=full, depth=depth, width=columns, color=color, ascii_only=not _draws_boxes(encoding)
    )


def _draws_boxes(encoding: str) -> bool:
    try:
        "─".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return encoding.lower().replace("-", "").replace("_", "").startswith("utf")


def clean(text: str) -> str:
    """`text` on one line and without control characters, so that a key of a configuration can't control the
    terminal."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def _first_screen(report: Report, width: int, ascii_only: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    for text, style in write_first_screen(report, width, ascii_only=ascii_only):
        yield Text(clean(text), style=style)


def _parts(report: Report, depth: int | None, width: int, ascii_only: bool) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    def line(text: str, style: str = "", indent: int = 0) -> RenderableType:
        return Padding(Text(clean(text), style=style), (0, 0, 0, indent))

    yield line(f"{report.model.name}: {report.run.get('method', '')}", "bold")
    yield line(describe_model(report))
    yield line(", ".join(f"{what} {words}" for what, words in report.run.items() if what != "method"), "dim")
    yield Text()
    for figure, meaning in headline(report):
        yield Text.assemble((figure, "bold cyan"), "  ", clean(meaning))
    yield line(f"peak: {describe_peak(report)}")
    verdict = {None: "bold yellow" if report.why else "", True: "bold green", False: "bold red"}[report.fits]
    yield line(describe_fit(report), verdict)
    if report.varying_rows is not None:
        yield line(report.varying_rows.text)
    for title, lines in alert_lines(report):
        yield Text()
        yield line(title, "bold red")
        for text in lines:
            yield line(text, indent=2)
    for table in make_tables(report, depth):
        yield Text()
        yield line(table.title, "bold")
        yield _rich_table(table, width, ascii_only)
        if table.footnote:
            yield line(table.footnote, "dim")
    for title, lines in note_lines(report):
        yield Text()
        yield line(title, "bold")
        for text in lines:
            yield line(text, indent=2)
    if report.choices:
        yield Text()
        yield line("Values used, and why", "bold")
        for value, reason in choice_lines(report):
            yield Padding(Text.assemble(clean(value), ("  " + clean(reason), "dim")), (0, 0, 0, 2))
    yield Text()
    yield line(_footer(report), "dim")


def _rich_table(table: Table, width: int, ascii_only: bool) -> RenderableType:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = [index for index, column in enumerate(table.columns) if width >= column.from_width]
    drawn = RichTable(
        box=box.ASCII2 if ascii_only else box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
        header_style="dim",
        show_footer=bool(table.total),
        footer_style="bold",
    )
    for index in shown:
        column = table.columns[index]
        drawn.add_column(
            Text(column.label),
            footer=Text(clean(table.total[index])) if table.total else "",
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="fold",
        )
    widest = _width_for_words(table, shown, width)
    for row in table.rows:
        cells = (clean(row[index]) for index in shown)
        drawn.add_row(*(Text(_break_names(cell, widest)) for cell in cells))
    return drawn


def _width_for_words(table: Table, shown: list[int], width: int) -> int:
    """The remaining width for the widest column of words: the width without the other columns and the gaps between
    them."""
    rows = [*table.rows, tuple(column.label for column in table.columns), *([table.total] if table.total else [])]
    widths = {index: max(len(row[index]) for row in rows) for index in shown}
    words = [widths[index] for index in shown if not table.columns[index].number]
    rest = sum(widths.values()) - max(words, default=0)
    return max(16, width - rest - 3 * (len(shown) - 1))


def _break_names(text: str, widest: int) -> str:
    """Breaks dotted names that are longer than `widest` after a dot, never within a word."""
    lines = [""]
    for part in re.split(r"(?<=[. ])", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > widest:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _footer(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    seconds = ", ".join(f"{stage} {elapsed:.1f}" for stage, elapsed in report.elapsed_seconds.items())
    axolotl = (
        f"figures as of axolotl {report.axolotl.version} ({report.axolotl.reason})" if report.axolotl.version else ""
    )
    return "; ".join(part for part in (axolotl, versions, f"seconds: {seconds}" if seconds else "") if part)
