"""Figures of a comparison: errors, medians and percentiles by group, intercepts and slopes of lines. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured quantity of one run, and its prediction, in bytes. If there is no prediction, `predicted` is 0 and
    `reason` says why."""

    id: str
    source: str
    quality: str
    num_gpus: int
    quantity: str
    measured: float
    predicted: int = 0
    line: str = ""
    rows: int = 0
    moment: str = ""
    """The phase of the predicted peak."""
    reason: str = ""
    """The reason why there is no prediction."""

    @property
    def error(self) -> float:
        """The signed relative error: positive if too much was predicted."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of a group of rows, as fractions."""

    count: int
    median: float
    median_absolute: float
    percentile_90: float
    """The 90th percentile of the absolute error: nine of ten rows have at most this error."""
    under_rate: float
    """The share of rows whose prediction was too low."""
    worst: float
    """The error with the largest absolute value, with its sign."""


def summarise(errors: Sequence[float]) -> Summary:
    """The figures of a group, which must not be empty."""
    absolute = sorted(abs(error) for error in errors)
    return Summary(
        count=len(errors),
        median=statistics.median(errors),
        median_absolute=statistics.median(absolute),
        percentile_90=percentile(absolute, 0.9),
        under_rate=sum(error < 0 for error in errors) / len(errors),
        worst=max(errors, key=abs),
    )


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The percentile by linear interpolation between the nearest ranks of an ordered sequence, as numpy's default.

    >>> percentile([0.0, 1.0, 2.0], 0.75)
    1.5
    """
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def group_rows(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Predicted rows by source, quality and quantity; and the groups for which the project has set a target."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.predicted:
            groups.setdefault(f"{row.source} {row.quality} {row.quantity}", []).append(row)
            if row.quality in ("A", "B") and row.num_gpus == 1 and row.quantity in ("allocated", "passes"):
                groups.setdefault("A and B, max_allocated, one GPU", []).append(row)
            if row.quality in ("A", "B") and row.num_gpus > 1 and row.quantity == "allocated":
                groups.setdefault("A and B, max_allocated, several GPUs", []).append(row)
    return dict(sorted(groups.items()))


def fit_lines(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Intercept and slope, in GiB and GiB per row, of runs that differ only in the batch: measured and predicted."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.predicted and row.line and row.quantity in ("allocated", "passes"):
            lines.setdefault(row.line, []).append(row)
    found = []
    for name, members in sorted(lines.items()):
        if len({member.rows for member in members}) > 1:
            xs = [float(member.rows) for member in members]
            measured = fit(xs, [member.measured / GIB for member in members])
            predicted = fit(xs, [member.predicted / GIB for member in members])
            found.append({"line": name, "points": len(members), "measured": measured, "predicted": predicted})
    return found


def fit(xs: Sequence[float], ys: Sequence[float]) -> Mapping[str, float]:
    """The least-squares line."""
    slope, intercept = statistics.linear_regression(xs, ys)
    return {"intercept": intercept, "slope": slope}


def differences(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The differences in GiB between two runs of one loop that differ only in their adapters (PEFT's comparison, same
    torch)."""
    by_release: dict[str, list[Row]] = {}
    for row in rows:
        if row.source == "peft" and row.predicted and "torch" in row.id:
            by_release.setdefault(row.id.rpartition("torch")[2].split("-")[0], []).append(row)
    found = []
    for members in by_release.values():
        base = min(members, key=lambda row: row.measured)
        for row in members:
            if row is not base:
                measured, predicted = row.measured - base.measured, row.predicted - base.predicted
                name = f"{row.id} - {base.id}"
                found.append({"runs": name, "measured": measured / GIB, "predicted": predicted / GIB})
    return found
