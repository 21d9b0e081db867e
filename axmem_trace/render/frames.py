"""Tables of a report as `pandas` data frames. pandas is imported when the first one is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from axmem_trace.report.codec import encode

if TYPE_CHECKING:
    import pandas as pd

    from axmem_trace.report.report import Report
    from axmem_trace.report.types import PhaseUse

TABLES = ("modules", "timeline", "dtypes", "phases")


def make_frame(report: Report, table: str) -> pd.DataFrame:
    """The data frame of one of `TABLES`.

    Raises:
        ImportError: pandas is not installed.
        ValueError: there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"{table!r} is no table of a report; there are {', '.join(TABLES)}")
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install pandas") from error
    if table == "phases":
        return pd.DataFrame(list(_phase_rows(report))).set_index("phase")
    frame = pd.DataFrame(encode(getattr(report, table)))
    return frame.set_index("name") if table == "modules" else frame


def _phase_rows(report: Report) -> Iterator[dict[str, Any]]:
    """`step_1`, then its parts as `step_1.forward`, with the buckets as columns."""

    def row(name: str, use: PhaseUse) -> dict[str, Any]:
        flat = {key: value for key, value in encode(use).items() if key not in ("phases", "buckets")}
        return {"phase": name, **flat, **encode(use.buckets)}

    for name, use in report.phases.items():
        yield row(name, use)
        for part, inner in use.phases.items():
            yield row(f"{name}.{part}", inner)
