"""A whole page of one report: one file with its style, its script and its data.

The page makes no request. Without the script, it shows everything except the moments other than the peak."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from axmem_trace.render.describe import (
    describe_model,
    describe_moment,
    describe_peak,
    describe_verdict,
    headline,
    needed_bytes,
)
from axmem_trace.render.html.bars import draw_bars
from axmem_trace.render.html.page import draw_table, mood_of
from axmem_trace.render.html.rank_tabs import rank_tabs
from axmem_trace.render.html.sections import candidates, explain, how_made, logged, notes
from axmem_trace.render.html.stacked import BUCKETS, draw_stacked, lay_out, peak_index, positions
from axmem_trace.render.html.treemap import draw_treemap
from axmem_trace.render.lines import alert_lines
from axmem_trace.render.tables import make_tables
from axmem_trace.report.holders import bucket_of_holder
from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    from axmem_trace.report.report import Report

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""With this policy, the browser itself refuses any request of the page."""
DEPTH = 5


def render_page(report: Report, *, depth: int | None = None, fit: Mapping[str, Any] | None = None) -> str:
    """The page. Every text of the configuration and of the model is escaped.

    Args:
        depth: the depth of the table of modules; None: repeated layers in one row, down to depth 5.
        fit: the JSON of `fit`, to show its changes.
    """
    body = "\n".join(_sections(report, depth, fit))
    title = f"{report.model.name}: {describe_verdict(report)}"
    data = json.dumps(_data(report), separators=(",", ":")).replace("<", "\\u003c") if report.moments else ""
    script = f"<script type='application/json' id='moments'>{data}</script>" if data else ""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<link rel='icon' href='data:,'>\n<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n{script}\n<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return resources.files("axmem_trace.render.html").joinpath(name).read_text(encoding="utf-8")


def _sections(report: Report, depth: int | None, fit: Mapping[str, Any] | None) -> Iterator[str]:
    yield _head(report)
    yield from _alerts(report)
    whose = f", rank {report.ranks[0].ranks}" if len(report.ranks) > 1 else ""
    yield _section(f"Memory over time{whose}", _timeline(report))
    yield _section("At the peak", _peak(report))
    yield _section("What axolotl will log", logged(report))
    yield _section("Ranks", rank_tabs(report))
    yield _section("What would change it", candidates(fit))
    tables = "".join(f"<div class='scroll'>{draw_table(table)}</div>" for table in make_tables(report, depth))
    yield _section("All tables", f"<details><summary>Buckets, phases, dtypes, modules</summary>{tables}</details>")
    yield _section("Notes and values", notes(report))
    yield _section("How to read this", explain(report))
    yield _section("How it was made", how_made(report))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _head(report: Report) -> str:
    mood = mood_of(report)
    why = f"<p>{escape(report.why)}</p>" if report.why else ""
    if report.varying_rows is not None:
        why += f"<p>{escape(report.varying_rows.text)}</p>"
    words = ", ".join(f"{what} {text}" for what, text in report.run.items() if what != "method")
    figures = "".join(
        f"<div><b>{figure.strip()}</b><small>{escape(what)}</small></div>" for figure, what in headline(report)
    )
    return (
        f"<header><div><small>axmem_trace: GPU memory of a run, predicted</small><h1>{escape(report.model.name)}: "
        f"{escape(report.run.get('method', ''))}</h1></div><button id='theme' hidden>Light or dark</button></header>"
        f"<section><p class='verdict {mood}'>{escape(describe_verdict(report))}</p>{why}{_bar(report)}"
        f"<div class='figures'>{figures}</div>"
        f"<p class='dim'>{escape(describe_model(report))}<br>{escape(words)}</p></section>"
    )


def _bar(report: Report) -> str:
    """A bar of the card, or of the needed memory, to scale."""
    need, card = needed_bytes(report), report.gpu.memory_bytes
    scale = max(card, need, 1)
    parts = [(name, getattr(report.buckets, name)) for name in BUCKETS]
    parts = [(name, nbytes) for name, nbytes in (*parts, ("cached", need - report.buckets.total)) if nbytes]
    pieces = "".join(f"<i class='{name}' style='width:{100 * nbytes / scale:.3f}%'></i>" for name, nbytes in parts)
    end = f"<u style='left:{100 * card / scale:.2f}%'></u>" if 0 < card < need else ""
    shown = [
        (name, name if name != "cached" else "cached by the allocator, CUDA context", size) for name, size in parts
    ]
    legend = "".join(f"<span><i class='{kind}'></i>{name} {format_bytes(size)}</span>" for kind, name, size in shown)
    free = f"<span>free {format_bytes(card - need)}</span>" if card > need else ""
    return f"<div class='bar'>{pieces}{end}</div><div class='legend'>{legend}{free}</div>"


def _alerts(report: Report) -> Iterator[str]:
    for title, lines in alert_lines(report):
        yield _section(title, f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


def _timeline(report: Report) -> str:
    if not report.moments:
        return "<p>The report has no moments: save it with <code>--format json --full</code>.</p>"
    legend = "".join(f"<span><i class='{name}'></i>{name}</span>" for name in BUCKETS if _is_used(report, name))
    return (
        f"{draw_stacked(report)}<input type='range' id='slider' min='0' aria-label='moment' hidden>"
        f"<div class='legend'>{legend}<span>thin line: reserved</span><span>dashed: the card</span></div>"
        "<p class='dim' id='hint' hidden>Click into the picture, or move the slider, to see what was allocated then.</p>"
        f"{_moment(report)}"
    )


def _is_used(report: Report, name: str) -> bool:
    return any(getattr(moment.buckets, name) for moment in report.moments)


def _moment(report: Report) -> str:
    """The allocated memory at the peak. The script replaces it by that of other moments."""
    moment = report.moments[peak_index(report.moments)]
    buckets = [(name, getattr(moment.buckets, name), name) for name in BUCKETS if getattr(moment.buckets, name)]
    columns = {
        "by-purpose": ("By purpose", draw_bars(buckets)),
        "by-source": ("By source", draw_bars([(each.name, each.bytes, "") for each in moment.holders])),
        "by-module": ("By module", draw_bars([(each.name, each.bytes, "") for each in moment.modules])),
    }
    lists = {key: f"<div><h3>{title}</h3><div id='{key}'>{rows}</div></div>" for key, (title, rows) in columns.items()}
    sizes = f"{format_bytes(moment.allocated_bytes)} allocated, {format_bytes(moment.reserved_bytes)} reserved"
    when = f"{_when(moment)}: {sizes}"
    return (
        f"<h3 id='when' aria-live='polite'>{escape(when)}</h3><p class='dim'>last operator: "
        f"<span id='last'>{escape(_last(moment))}</span></p><div class='two'><div>{lists['by-purpose']}"
        f"{lists['by-source']}</div>{lists['by-module']}</div>"
    )


def _peak(report: Report) -> str:
    def map_of(title: str, items: Sequence[tuple[str, int]], class_of: Callable[[str], str]) -> str:
        picture = draw_treemap(items, class_of, label=f"the peak {title}")
        return f"<div><h3>{title[0].upper()}{title[1:]}</h3>{picture}</div>" if picture else ""

    sources = map_of("by source", [(each.name, each.bytes) for each in report.holders], bucket_of_holder)
    modules = ""
    if report.moments:
        moment = report.moments[peak_index(report.moments)]
        modules = map_of("by module", [(each.name, each.bytes) for each in moment.modules], lambda name: "module")
    when = describe_moment(report.peak.phase, report.peak.step)
    purpose = f" ({report.peak.holder})" if report.peak.holder else ""
    return (
        f"<p>{escape(when + purpose)}: {format_bytes(report.peak.allocated_bytes)} allocated</p>"
        f"<p class='dim'>{escape(describe_peak(report))}</p>"
        f"<div class='two'>{sources}{modules}</div>"
    )


def _when(moment: Any) -> str:
    return describe_moment(moment.phase, moment.step)


def _last(moment: Any) -> str:
    return f"{moment.op or 'none'} in {moment.module}" if moment.module else moment.op or "none"


def _data(report: Report) -> dict[str, Any]:
    """The data for the script. Each name is written once."""
    names: dict[str, int] = {}

    def pairs(items: Sequence[Any]) -> list[list[int]]:
        return [[names.setdefault(each.name, len(names)), each.bytes] for each in items]

    moments = [
        {
            "x": round(x, 2),
            "when": _when(moment),
            "last": _last(moment),
            "bytes": moment.allocated_bytes,
            "reserved": moment.reserved_bytes,
            "buckets": [getattr(moment.buckets, name) for name in BUCKETS],
            "sources": pairs(moment.holders),
            "modules": pairs(moment.modules),
        }
        for moment, x in zip(report.moments, positions(lay_out(report.moments)), strict=True)
    ]
    return {"buckets": BUCKETS, "names": list(names), "peak": peak_index(report.moments), "moments": moments}
