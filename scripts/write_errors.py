#!/usr/bin/env python3
"""Writes `axmem_trace/report/errors.json`, our error by kind of run, from `tests/measured/published/runs.json`.

    python scripts/write_errors.py [--check]
    python scripts/write_errors.py --runs DIRECTORY [COMPARISON.json ...]

With `--runs`, `tests/measured/published/runs.json` is written first: the figures of `tests/measured/README.md` (and of
further comparisons that `compare_published.py --format json` wrote), each with the kind of its run. DIRECTORY has
`runs.json`, as for `compare_published.py`.

Only runs whose settings and lengths are known count (fms-acceleration, Answer.AI, PEFT): a wrong figure because of a
guessed length is not an error of the estimate. Two kinds of runs are left out: runs from which an unknown value was
calculated, and runs that did not fit.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for place in (ROOT / "scripts", ROOT):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from compare_published import AXOLOTL, read_cases  # noqa: E402
from published_figures import GIB, percentile  # noqa: E402
from write_measured import QUANTITIES  # noqa: E402

RUNS = ROOT / "tests/measured/published/runs.json"
README = ROOT / "tests/measured/README.md"
ERRORS = ROOT / "axmem_trace/report/errors.json"
SOURCES = ("fms", "answerai", "peft")
METRICS = ("max_allocated", "max_reserved", "nvidia-smi")
TAKEN_FROM = "rank32-torch"
"""The length of PEFT's longest batch is taken from this run."""
DIGITS = 6
_ROW = re.compile(r"^\| ([^|]+) \| [ABC] \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|", re.MULTILINE)

Figures = dict[tuple[str, str], tuple[float, float]]
"""(run, metric) -> predicted and measured, in GiB."""


def read_readme() -> Figures:
    """The figures in the README's tables of single runs."""
    found = _ROW.findall(README.read_text(encoding="utf-8"))
    return {(run, metric): (float(predicted), float(measured)) for run, metric, predicted, measured in found}


def read_comparison(path: Path) -> Figures:
    """The figures in a file of `compare_published.py --format json`."""
    rows = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {
        (row["id"], QUANTITIES[row["quantity"]]): (round(row["predicted"] / GIB, 3), round(row["measured"] / GIB, 3))
        for row in rows
        if row["predicted"]
    }


def list_runs(directory: Path, figures: Figures) -> Iterator[dict[str, Any]]:
    """Each run with a figure, and its kind as found by the package itself."""
    from axmem_trace.config import read_recipe
    from axmem_trace.report.accuracy import find_kind

    for case in read_cases(directory):
        known = {metric: figures[case.id, metric] for metric in METRICS if (case.id, metric) in figures}
        if case.source not in SOURCES or case.cannot or "-oom-" in case.id or TAKEN_FROM in case.id or not known:
            continue
        recipe = read_recipe(
            case.config,
            assumptions=case.assumptions,
            gpu=case.gpu,
            hub="never",
            axolotl=AXOLOTL,
            num_gpus=case.num_gpus if case.num_gpus > 1 else 0,
        )
        for metric, (predicted, measured) in known.items():
            yield {
                "id": case.id,
                "metric": metric,
                "predicted_gib": predicted,
                "measured_gib": measured,
                "kind": asdict(find_kind(recipe)),
            }


def make_errors(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind and metric, in the order of their names."""
    groups: dict[tuple[str, str], list[float]] = {}
    kinds: dict[str, Any] = {}
    for run in runs:
        name = json.dumps(run["kind"])
        kinds[name] = run["kind"]
        groups.setdefault((name, run["metric"]), []).append(run["predicted_gib"] / run["measured_gib"] - 1)
    return [
        {"kind": kinds[name], "metric": metric, **summarise(errors)}
        for (name, metric), errors in sorted(groups.items())
    ]


def summarise(errors: Sequence[float]) -> dict[str, float]:
    """The figures of the errors of one kind, as fractions of the measured figures.

    >>> summarise([-0.02, 0.0, 0.01])["nine_of_ten_within"]  # 0, 1, 2 %: a fifth of the way from 2 to 1
    0.018
    """
    ordered = sorted(map(abs, errors))
    figures = {
        "half_within": statistics.median(ordered),
        "nine_of_ten_within": percentile(ordered, 0.9),
        "worst_low": min(*errors, 0.0),
        "worst_high": max(*errors, 0.0),
        "too_low_share": sum(error < 0 for error in errors) / len(errors),
    }
    return {"runs": len(errors), **{name: round(value, DIGITS) for name, value in figures.items()}}


def make_ranges(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How far `nvidia-smi` was from the estimate: one row for one GPU, one for several."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run["metric"] == "nvidia-smi":
            name = "one GPU" if run["kind"]["engine"] == "one GPU" else "several GPUs"
            groups.setdefault(name, []).append((run["predicted_gib"], run["measured_gib"]))
    return [{"engines": name, **find_distances(figures)} for name, figures in sorted(groups.items())]


def find_distances(figures: Sequence[tuple[float, float]]) -> dict[str, float]:
    """From (predicted, measured) GiB: how much was missing at most, and how much too much nine of ten predictions were
    at most, as shares of the estimate.

    >>> find_distances([(10.0, 11.0), (40.0, 42.0), (20.0, 19.0)])["missing_gib"]
    2.0
    """
    missing = [measured - predicted for predicted, measured in figures]
    shares = [each / predicted for each, (predicted, _) in zip(missing, figures, strict=True)]
    extra = sorted(max(-share, 0.0) for share in shares)
    found = {
        "missing_share": max(*shares, 0.0),
        "missing_gib": max(*missing, 0.0),
        "extra_share": percentile(extra, 0.9),
    }
    return {"runs": len(figures), **{name: round(value, DIGITS) for name, value in found.items()}}


def write_lines(key: str, source: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON with one row on each line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"source": {json.dumps(source)},\n"{key}": [\n{lines}\n]}}\n'


def write_errors() -> str:
    """The text of the package's file."""
    runs = json.loads(RUNS.read_text(encoding="utf-8"))["runs"]
    source = "scripts/write_errors.py, from tests/measured/published/runs.json"
    ranges = ",\n".join(json.dumps(row) for row in make_ranges(runs))
    return write_lines("errors", source, make_errors(runs)).removesuffix("}\n") + f',\n"ranges": [\n{ranges}\n]}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the table is stale")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="PATH", help="DIRECTORY, and further comparisons")
    options = parser.parse_args(arguments)
    if options.check:
        stale = ERRORS.read_text(encoding="utf-8") != write_errors()
        print("stale: run scripts/write_errors.py" if stale else "up to date")
        return int(stale)
    if options.runs:
        figures = read_readme()
        for path in options.runs[1:]:
            figures |= read_comparison(path)
        text = write_lines("runs", "scripts/write_errors.py --runs", list_runs(options.runs[0], figures))
        RUNS.write_text(text, encoding="utf-8")
    ERRORS.write_text(write_errors(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
