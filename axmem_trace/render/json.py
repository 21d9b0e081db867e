"""The JSON contract: `Report.to_dict()`, written out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from axmem_trace.report.codec import encode

if TYPE_CHECKING:
    from axmem_trace.report.report import Report


def render_json(report: Report, *, depth: int | None = None) -> str:
    """The report as JSON text, ASCII only, one trailing newline; `depth` folds the deeper modules, sums unchanged."""
    contents = report.to_dict()
    if depth is not None:
        contents["modules"] = encode(report.by_module(depth))
    return json.dumps(contents, indent=2, allow_nan=False) + "\n"
