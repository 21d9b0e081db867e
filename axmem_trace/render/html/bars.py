"""Names with their bytes, each with a bar to scale."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from axmem_trace.units import format_bytes


def draw_bars(items: Sequence[tuple[str, int, str]]) -> str:
    """One row for each (name, bytes, style of the bar); the largest has a bar of the full width."""
    most = max((nbytes for _, nbytes, _ in items), default=1) or 1
    return "".join(
        f"<div class='row'><span>{escape(name)}</span><b>{format_bytes(nbytes)}</b>"
        f"<em><i class='{kind}' style='width:{max(0.0, 100 * nbytes / most):.1f}%'></i></em></div>"
        for name, nbytes, kind in items
    )
