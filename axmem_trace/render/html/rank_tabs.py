"""A tab for each group of ranks that hold parts of equal sizes: its figures, its timeline, its peak. No script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from axmem_trace.render.describe import describe_moment
from axmem_trace.render.html.bars import draw_bars
from axmem_trace.render.html.sections import draw_rows, table_row
from axmem_trace.render.html.stacked import draw_stacked, peak_index
from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    from axmem_trace.report.rank_types import RankUse
    from axmem_trace.report.report import Report

NUM_SOURCES = 6


def rank_tabs(report: Report) -> str:
    """The tabs, by radio buttons; empty for one group."""
    if len(report.ranks) < 2:
        return ""
    tabs, panes, rules = [], [], []
    worst = next((index for index, use in enumerate(report.ranks) if use.worst), 0)
    for index, use in enumerate(report.ranks):
        checked = " checked" if index == worst else ""
        most = ", the most" if use.worst else ""
        tabs.append(
            f"<input type='radio' name='rank' id='rank{index}'{checked}>"
            f"<label for='rank{index}'>rank {escape(use.ranks)}{most}</label>"
        )
        panes.append(f"<div class='pane' id='pane{index}'>{_figures(report, use)}{_timeline(report, index)}</div>")
        rules.append(f"#rank{index}:checked~#pane{index}{{display:block}}")
    return f"<style>{''.join(rules)}</style><div class='tabs'>{''.join(tabs)}{''.join(panes)}</div>"


def _figures(report: Report, use: RankUse) -> str:
    figures = (
        ("allocated", use.allocated_bytes),
        ("max_active", use.active_bytes),
        ("max_allocated", use.counted_bytes),
        ("device_reserved", use.reserved_bytes),
        ("nvidia-smi", use.device_bytes),
        ("host memory", use.host_bytes),
    )
    rows = [table_row((name, format_bytes(nbytes))) for name, nbytes in figures]
    when = describe_moment(use.phase, use.step)
    words = f"{use.count} of {report.gpu.count} ranks, {use.basis}; the most in {when}"
    return f"<p class='dim'>{escape(words)}</p>{draw_rows(('', ''), rows)}"


def _timeline(report: Report, index: int) -> str:
    """The picture of the group's run, and what is allocated at its peak."""
    moments = report.ranks[index].moments if index else report.moments
    if not moments:
        return ""
    peak = moments[peak_index(moments)]
    sources = draw_bars([(each.name, each.bytes, "") for each in peak.holders[:NUM_SOURCES]])
    return (
        f"{draw_stacked(report, moments)}<h3>{escape(describe_moment(peak.phase, peak.step))}: "
        f"{format_bytes(peak.allocated_bytes)} allocated, the largest sources</h3>{sources}"
    )
