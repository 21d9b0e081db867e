"""Sections of a page with only words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from axmem_trace.render.describe import logged_lines
from axmem_trace.render.lines import choice_lines, note_lines
from axmem_trace.report.verdict import ROOM_SHARE
from axmem_trace.units import format_bytes, gib

if TYPE_CHECKING:
    from axmem_trace.report.report import Report


def logged(report: Report) -> str:
    """The figures of each line that axolotl logs. The peaks are reset when the model is loaded, and after each line."""
    rows = [table_row((name, *(f"{gib(figure):.2f}" for figure in figures))) for name, figures in logged_lines(report)]
    heads = ("GiB", "max_active", "max_allocated", "device_reserved")
    silent = "<p>TRL's trainers log nothing of memory: these are the figures that PyTorch would give.</p>"
    return (silent if report.run.get("log") == "none" else "") + draw_rows(heads, rows) if rows else ""


def candidates(fit: Mapping[str, Any] | None) -> str:
    """The changes that `fit` has tried, in its order, the gentlest first; empty without a result of `fit`."""
    changes = (fit or {}).get("changes") or []
    rows = []
    for change in changes:
        fits = {True: "yes", False: "no", None: "?"}[change.get("fits")]
        cost = str(change.get("blocked") or change.get("cost") or "")
        needs = int(change.get("need_bytes") or 0)
        figures = [format_bytes(needs), format_bytes(int(change.get("saved_bytes") or 0))] if needs else ["", ""]
        rows.append(table_row((str(change.get("words", change.get("name", ""))), *figures, fits, cost), words=(0, 4)))
    return (
        draw_rows(("one change at a time", "needs", "saves", "fits by itself", "cost, or why not"), rows, (0, 4))
        if rows
        else ""
    )


def notes(report: Report) -> str:
    """Notes by kind, and the used values with their reasons; both can be opened."""
    parts = [
        f"<details><summary>{escape(title)} ({len(lines)})</summary><ul>"
        f"{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul></details>"
        for title, lines in note_lines(report)
    ]
    if report.choices:
        items = "".join(f"<li>{escape(value)} <small>{escape(why)}</small></li>" for value, why in choice_lines(report))
        parts.append(
            f"<details><summary>Values used, and why ({len(report.choices)})</summary><ul>{items}</ul></details>"
        )
    return "".join(parts)


def explain(report: Report) -> str:
    """The meaning of the words and of the picture, and the accuracy of the figures."""
    words = {
        "allocated": "Bytes of tensors, in blocks of 512 bytes. axolotl logs the most of it as memory/max_allocated.",
        "active": "Allocated, and blocks that were freed but wait for another stream of the GPU.",
        "reserved": "What PyTorch's caching allocator has taken from the card: allocated blocks and cached free ones.",
        "nvidia-smi": "Reserved, and the CUDA context (and NCCL's buffers), which are assumed. This must fit the card.",
        "the picture": "The run from left to right: loading, two steps, evaluation. Each point is the highest moment of a "
        "part of it. Widths are numbers of operators, not seconds, and a short phase is wider than its share. Colours are "
        "purposes; the line above them is what is reserved.",
        "by source, by module": "Two ways to divide the same bytes. A star means all layers.",
        "verdict": f"“Fits with room” leaves {100 * ROOM_SHARE:.0f} % of the card free. “Tight” leaves less than the "
        "error of our own predictions. “Cannot say”: something that is not in the figures could change the answer.",
        "how exact": f"{escape(report.accuracy.text[:1].upper() + report.accuracy.text[1:])}. docs/accuracy.md has the "
        "measured runs.",
    }
    return f"<dl>{''.join(f'<dt>{word}</dt><dd>{text}</dd>' for word, text in words.items())}</dl>"


def how_made(report: Report) -> str:
    """Configuration, versions, time."""
    libraries = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report.elapsed_seconds.items())
    rules = f"the rules of axolotl {report.axolotl.version} ({report.axolotl.reason})" if report.axolotl.version else ""
    lines = (
        f"Configuration: {report.run.get('config', '')}. Base model: {report.model.name} ({report.model.config_source}).",
        f"Steps of the real libraries ran on meta tensors, without a GPU and without weights: {libraries}.",
        f"By {rules}." if rules else "",
        f"Seconds: {seconds}.",
    )
    return "".join(f"<p>{escape(line)}</p>" for line in lines if line)


def table_row(cells: tuple[str, ...], words: tuple[int, ...] = (0,)) -> str:
    """A row of a table. `words`: the cells that are not figures."""
    marks = ("" if index in words else " class='n'" for index in range(len(cells)))
    return f"<tr>{''.join(f'<td{mark}>{escape(cell)}</td>' for mark, cell in zip(marks, cells, strict=True))}</tr>"


def draw_rows(heads: tuple[str, ...], rows: list[str], words: tuple[int, ...] = (0,)) -> str:
    """A table of rows that `table_row` made."""
    marks = ("" if index in words else " class='n'" for index in range(len(heads)))
    head = "".join(f"<th{mark}>{escape(name)}</th>" for mark, name in zip(marks, heads, strict=True))
    thead = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f"<div class='scroll'><table>{thead}<tbody>{''.join(rows)}</tbody></table></div>"
