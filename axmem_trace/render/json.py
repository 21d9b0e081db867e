"""The JSON text of a report: `Report.to_dict()`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from axmem_trace.errors import AxmemError, ConfigError
from axmem_trace.report.codec import encode
from axmem_trace.report.row_folding import group_repeated
from axmem_trace.report.run_types import NoReport, Refusal

if TYPE_CHECKING:
    from axmem_trace.report.report import Report


BRIEF_DEPTH = 5
"""The number of parts of a module's name in the brief form, which reaches down to the layers."""


def render_json(report: Report, *, brief: bool = False, depth: int | None = None) -> str:
    """The report as JSON text: ASCII only, with one trailing newline. `report.schema.json` in this package describes
    it.

    Args:
        brief: whether modules are folded to `BRIEF_DEPTH`, repeated layers are in one row (`layers.{0-31}`), and the
            timeline is left out. Sums stay the same.
        depth: modules that are deeper than this are folded. Sums stay the same.
    """
    contents = report.to_dict()
    if depth is not None:
        contents["modules"] = encode(report.by_module(depth))
    elif brief:
        contents["modules"] = encode(group_repeated(report.by_module(BRIEF_DEPTH)))
        contents["timeline"] = contents["moments"] = []
        for rank in contents["ranks"]:
            rank["moments"] = []
    return json.dumps(contents, indent=2, allow_nan=False) + "\n"


def render_no_report(error: AxmemError) -> str:
    """The reasons why there is no report as JSON text, as `NoReport` in `report.schema.json` describes it."""
    errors = (error, *error.others) if isinstance(error, ConfigError) else (error,)
    contents = encode(NoReport(refusals=tuple(_refusal(each) for each in errors)))
    return json.dumps(contents, indent=2, allow_nan=False) + "\n"


def _refusal(error: AxmemError) -> Refusal:
    if not isinstance(error, ConfigError):
        return Refusal(key="", line=0, value="", reason=str(error))
    accepted = (f"accepted: {error.accepted}",) if error.accepted else ()
    return Refusal(
        key=error.key,
        line=error.line,
        value="" if error.value is None else str(error.value),
        reason="; ".join((error.problem, *accepted, *error.details)),
        remedy=error.remedy,
    )
