"""The report as one self-contained HTML fragment, for a notebook cell or a page: no script, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from axmem_trace.render.html.timeline import draw_timeline
from axmem_trace.render.lines import alert_lines, choice_lines, note_lines
from axmem_trace.render.tables import Table, describe_fit, describe_model, describe_peak, headline, make_tables

if TYPE_CHECKING:
    from axmem_trace.report.report import Report

STYLE = """\
.axmem-trace{font-family:system-ui,sans-serif;font-size:13px;line-height:1.45;max-width:60rem}
.axmem-trace table{border-collapse:collapse;margin:.3em 0 1em}
.axmem-trace th,.axmem-trace td{padding:.1em .7em;text-align:left;border:0;white-space:pre-wrap}
.axmem-trace .n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.axmem-trace thead th{border-bottom:1px solid currentColor;font-weight:normal;opacity:.7}
.axmem-trace tfoot td{border-top:1px solid currentColor;font-weight:bold}
.axmem-trace caption,.axmem-trace h4{text-align:left;font-weight:bold;margin:.6em 0 .2em}
.axmem-trace ul{margin:.1em 0 .8em 1.2em;padding:0}
.axmem-trace small{opacity:.7}"""


def render_html(report: Report, *, depth: int | None = None) -> str:
    """The report as a `<div>` with its own style. Every text of the configuration and of the model is escaped."""
    return "\n".join(("<div class='axmem-trace'>", f"<style>{STYLE}</style>", *_parts(report, depth), "</div>", ""))


def _parts(report: Report, depth: int | None) -> Iterator[str]:
    yield f"<h4>{escape(report.model.name)}: {escape(report.run.get('method', ''))}</h4>"
    yield f"<p>{escape(describe_model(report))}<br>"
    words = ", ".join(f"{what} {text}" for what, text in report.run.items() if what != "method")
    yield f"<small>{escape(words)}</small></p>"
    rows = "".join(f"<tr><td class='n'><b>{figure.strip()}</b></td><td>{escape(what)}</td></tr>"
                   for figure, what in headline(report))  # fmt: skip
    yield f"<table><tbody>{rows}</tbody></table>"
    yield f"<p>peak: {escape(describe_peak(report))}<br>fits: <b>{escape(describe_fit(report))}</b></p>"
    for title, lines in alert_lines(report):
        yield f"<h4>{escape(title)}</h4><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    yield draw_timeline(report)
    for table in make_tables(report, depth):
        yield _table(table)
    for title, lines in note_lines(report):
        yield f"<h4>{escape(title)}</h4><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    if report.choices:
        items = "".join(f"<li>{escape(value)} <small>{escape(why)}</small></li>" for value, why in choice_lines(report))
        yield f"<details><summary>Values used, and why</summary><ul>{items}</ul></details>"
    yield f"<p><small>{escape(', '.join(f'{name} {version}' for name, version in report.versions.items()))}</small></p>"


def _table(table: Table) -> str:
    def cells(row: tuple[str, ...], tag: str) -> str:
        marks = (" class='n'" if column.number else "" for column in table.columns)
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(row, marks, strict=True))

    head = f"<thead><tr>{cells(tuple(column.label for column in table.columns), 'th')}</tr></thead>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    foot = f"<tfoot><tr>{cells(table.total, 'td')}</tr></tfoot>" if table.total else ""
    note = f"<small>{escape(table.footnote)}</small>" if table.footnote else ""
    return f"<table><caption>{escape(table.title)}</caption>{head}<tbody>{body}</tbody>{foot}</table>{note}"
