"""The report as one HTML fragment for a notebook cell or a page. It has no script and loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from axmem_trace.render.colors import COLORS
from axmem_trace.render.describe import describe_fit, describe_model, describe_peak, headline
from axmem_trace.render.html.stacked import draw_stacked
from axmem_trace.render.html.timeline import draw_timeline
from axmem_trace.render.lines import alert_lines, choice_lines, note_lines
from axmem_trace.render.tables import Table, make_tables

if TYPE_CHECKING:
    from axmem_trace.report.report import Report

_MOODS = {
    "fits with room": "good",
    "fits": "good",
    "tight": "warn",
    "does not fit": "bad",
    "cannot say": "warn",
    "": "",
}
STYLE = """\
.axmem-trace{font-family:system-ui,sans-serif;font-size:13px;line-height:1.45;max-width:60rem}
.axmem-trace.axmem-trace table{border-collapse:collapse;margin:.3em 0 1em;font-size:13px;table-layout:auto}
.axmem-trace.axmem-trace tr{background:none;text-align:left}
.axmem-trace.axmem-trace th,.axmem-trace.axmem-trace td{padding:.1em .7em;text-align:left;border:0;white-space:pre-wrap;\
vertical-align:top;max-width:none}
.axmem-trace.axmem-trace .n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.axmem-trace.axmem-trace .pre{white-space:pre}
.axmem-trace .good{color:#2e8b57}.axmem-trace .warn{color:#b7791f}.axmem-trace .bad{color:#d64541}
.axmem-trace .chart{position:relative;height:240px;margin:3.2em 1em 1em 5em}
.axmem-trace .chart svg{position:absolute;inset:0;width:100%;height:100%}
.axmem-trace .chart polyline,.axmem-trace .chart line{vector-effect:non-scaling-stroke;fill:none}
.axmem-trace .grid{stroke:currentColor;stroke-opacity:.15}.axmem-trace .reserved{stroke:currentColor;stroke-width:1.5}
.axmem-trace .limit{stroke:#d64541;stroke-width:2;stroke-dasharray:6 4}
.axmem-trace .y{position:absolute;right:calc(100% + .5em);transform:translateY(50%);font-size:11px;white-space:nowrap;\
opacity:.7}
.axmem-trace .band{position:absolute;top:-1.6em;bottom:0;border-left:1px solid #8886;overflow:hidden;white-space:nowrap;\
font-size:11px;padding-left:.2em;text-overflow:ellipsis;opacity:.8;line-height:1.6em}
.axmem-trace .step{top:-3.1em;bottom:100%;font-weight:bold}
.axmem-trace .mark{position:absolute;top:0;bottom:0;border-left:2px solid currentColor;opacity:.5}
.axmem-trace .cardname{position:absolute;right:.3em;transform:translateY(110%);font-size:11px;color:#d64541}
.axmem-trace .key{display:inline-block;width:.8em;height:.8em;margin:0 .4em 0 1em}
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
    rows = "".join(
        f"<tr><td class='n'><b>{figure.strip()}</b></td><td>{escape(what)}</td></tr>"
        for figure, what in headline(report)
    )
    yield f"<table><tbody>{rows}</tbody></table>"
    fits = f"<b class='{mood_of(report)}'>{escape(describe_fit(report))}</b>"
    yield f"<p>peak: {escape(describe_peak(report))}<br>{fits}</p>"
    if report.varying_rows is not None:
        yield f"<p>{escape(report.varying_rows.text)}</p>"
    for title, lines in alert_lines(report):
        yield f"<h4>{escape(title)}</h4><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    yield _draw(report)
    for table in make_tables(report, depth):
        yield draw_table(table)
    for title, lines in note_lines(report):
        yield f"<h4>{escape(title)}</h4><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    if report.choices:
        items = "".join(f"<li>{escape(value)} <small>{escape(why)}</small></li>" for value, why in choice_lines(report))
        yield f"<details><summary>Values used, and why</summary><ul>{items}</ul></details>"
    yield f"<p><small>{escape(', '.join(f'{name} {version}' for name, version in report.versions.items()))}</small></p>"


def mood_of(report: Report) -> str:
    """The style of the verdict; empty without one."""
    return "bad" if report.refusals else _MOODS[report.verdict]


def _draw(report: Report) -> str:
    """The stacked timeline with its legend; for a report without moments, the plain timeline."""
    if not report.moments:
        return draw_timeline(report)
    keys = "".join(
        f"<span class='key' style='background:{color}'></span>{name}"
        for name, color in COLORS.items()
        if any(getattr(moment.buckets, name) for moment in report.moments)
    )
    colors = "".join(f".axmem-trace polygon.{name}{{fill:{color}}}" for name, color in COLORS.items())
    return f"<style>{colors}</style>{draw_stacked(report)}<small>{keys}; line: reserved; dashed: the card</small>"


def _style_of(cell: str, *, number: bool) -> str:
    """Numbers are aligned right. An indented name keeps its indentation and stays on one line."""
    return " class='n'" if number else " class='pre'" if cell.startswith(" ") else ""


def draw_table(table: Table) -> str:
    """One table of the report."""

    def cells(row: tuple[str, ...], tag: str) -> str:
        pairs = [
            (escape(cell), _style_of(cell, number=column.number))
            for cell, column in zip(row, table.columns, strict=True)
        ]
        return "".join(f"<{tag}{style}>{cell}</{tag}>" for cell, style in pairs)

    head = f"<thead><tr>{cells(tuple(column.label for column in table.columns), 'th')}</tr></thead>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    foot = f"<tfoot><tr>{cells(table.total, 'td')}</tr></tfoot>" if table.total else ""
    note = f"<small>{escape(table.footnote)}</small>" if table.footnote else ""
    return f"<table><caption>{escape(table.title)}</caption>{head}<tbody>{body}</tbody>{foot}</table>{note}"
