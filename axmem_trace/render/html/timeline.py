"""The timeline of a report as an SVG picture: live and reserved bytes from loading to the end."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    from axmem_trace.report.report import Report

CHART_WIDTH, CHART_HEIGHT = 720, 160


def draw_timeline(report: Report) -> str:
    """Live (filled) and reserved (line) bytes over the ticks of the run."""
    points = report.timeline
    if not points:
        return ""
    last_tick = max(points[-1].tick, 1)
    top = max(max(point.reserved_bytes, point.allocated_bytes) for point in points) or 1

    def at(tick: int, nbytes: int) -> str:
        return f"{CHART_WIDTH * tick / last_tick:.1f},{CHART_HEIGHT * (1 - nbytes / top):.1f}"

    live = " ".join(at(point.tick, point.allocated_bytes) for point in points)
    reserved = " ".join(at(point.tick, point.reserved_bytes) for point in points)
    marks, before = "", ""
    for point in points:
        moment = f"{point.phase} {point.step}"
        if moment != before:
            x = CHART_WIDTH * point.tick / last_tick
            line = (
                f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{CHART_HEIGHT}' stroke='currentColor' stroke-opacity='.2'>"
            )
            marks += f"{line}<title>{escape(moment)}</title></line>"
        before = moment
    return (
        f"<svg viewBox='0 0 {CHART_WIDTH} {CHART_HEIGHT}' style='width:100%;max-width:{CHART_WIDTH}px' role='img' "
        f"aria-label='live bytes over time, at most {format_bytes(report.peak.allocated_bytes)}'>"
        f"<polygon points='0,{CHART_HEIGHT} {live} {CHART_WIDTH},{CHART_HEIGHT}' fill='#4c78a8' fill-opacity='.6'/>"
        f"<polyline points='{reserved}' fill='none' stroke='#e45756'/>{marks}</svg><br>"
        f"<small>live bytes (filled) and reserved bytes (line) from loading to the end; "
        f"top: {format_bytes(top)}; thin lines: phases</small>"
    )
