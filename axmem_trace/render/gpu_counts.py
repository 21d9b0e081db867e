"""The same run on several numbers of GPUs, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from axmem_trace.units import gib

if TYPE_CHECKING:
    from axmem_trace.advice.gpu_counts import CountFit


def render_counts(fits: Sequence[CountFit], form: str) -> str:
    """One line for each number of GPUs, in GiB on each GPU (`text`), or a JSON list of objects in bytes (`json`)."""
    if form == "json":
        return json.dumps([_to_dict(fit) for fit in fits], indent=2) + "\n"
    lines = [f"{'GPUs':>4}  {'allocated':>9}  {'reserved':>8}  {'needs':>7}  {'left':>7}  GiB on each GPU"]
    for fit in fits:
        sizes = (fit.allocated_bytes, fit.reserved_bytes, fit.need_bytes)
        figures = [f"{gib(size):.2f}" if fit.need_bytes else "-" for size in sizes]
        figures.append("-" if fit.left_bytes is None or not fit.need_bytes else f"{gib(fit.left_bytes):.2f}")
        cells = "  ".join(f"{figure:>{width}}" for figure, width in zip(figures, (9, 8, 7, 7), strict=True))
        lines.append(f"{fit.count:>4}  {cells}  {_words(fit)}".rstrip())
    return "\n".join(lines) + "\n"


def _words(fit: CountFit) -> str:
    where = f"{fit.machines} machines" if fit.machines > 1 else ""
    said = fit.verdict or (f"can't run: {fit.reason}" if fit.reason else "")
    return ", ".join(word for word in (said, where) if word)


def _to_dict(fit: CountFit) -> dict[str, Any]:
    return {
        "gpus": fit.count,
        "machines": fit.machines,
        "verdict": fit.verdict,
        "fits": fit.fits if fit.verdict and fit.verdict != "cannot say" else None,
        "allocated_bytes": fit.allocated_bytes,
        "reserved_bytes": fit.reserved_bytes,
        "need_bytes": fit.need_bytes,
        "left_bytes": fit.left_bytes,
        "reason": fit.reason,
    }
