"""Predicts runs that others measured on real GPUs, and prints the predictions with the measurements.

    python scripts/compare_published.py DIRECTORY [--source fms]... [--match REGEX] [--limit N] [--format text|json]

DIRECTORY contains `runs.json` and, if they exist, `activation_probes.json` and `out_of_memory.json`. Runs that can't be
expressed as a configuration, or whose record is not complete, are listed with the reason. Each estimate takes some
seconds. `--cache DIR` stores the estimates until the package or the translation of the run changes; `--jobs N` runs N
at a time.

exit codes: 0 compared; 1 an estimate stopped by an error of this package; 2 the files can't be read
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
for place in (SCRIPTS, SCRIPTS.parent):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from published_case import Case, read_record  # noqa: E402
from published_figures import GIB, Row, differences, fit_lines, group_rows, summarise  # noqa: E402
from published_notebook import read_probe  # noqa: E402
from published_runs import read_out_of_memory, read_run  # noqa: E402

STOPPED = "the estimate stopped:"
CARD_BYTES = 80 * GIB
"""The memory of the cards of `out_of_memory.json`, at most."""
AXOLOTL = "0.19.0"
"""The runs are of other trainers or of an older axolotl. The oldest known release is the nearest to all of them."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("directory", type=Path, help="directory with runs.json, or that file")
    add("--source", action="append", default=[], help="only runs of this source (fms, peft, probes, ...); repeatable")
    add("--match", default="", help="only runs whose id matches this regular expression")
    add("--limit", type=int, default=0, metavar="N", help="at most N estimates")
    add("--format", choices=("text", "json"), default="text")
    add("--cache", type=Path, metavar="DIR", help="remember estimates there")
    add("--jobs", type=int, default=1, metavar="N", help="estimates at a time")
    add("--out-of-memory", action="store_true", help="only the runs that did not fit")
    return parser


def read_cases(directory: Path, *, only_out_of_memory: bool = False) -> list[Case]:
    """Every case of a directory's files, or of one file of runs.

    Raises:
        OSError, ValueError: a file can't be read, or is not JSON.
    """
    if directory.is_file():
        return [read_record(read_run, run) for run in _records(directory, "runs")]
    did_not_fit = [
        read_record(read_out_of_memory, record, "fms-oom-run") for record in _records(directory / "out_of_memory.json")
    ]
    if only_out_of_memory:
        return did_not_fit
    points = [
        read_record(read_probe, point, "probe") for point in _records(directory / "activation_probes.json", "points")
    ]
    runs = [read_record(read_run, run) for run in _records(directory / "runs.json", "runs")]
    return [*runs, *points, *did_not_fit]


def _records(path: Path, key: str = "runs") -> list[Any]:
    """The list in a file, either as the whole content or under `key`; an empty list if there is no file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    records = content.get(key) if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise ValueError(f"{path}: neither a list nor an object with a list of {key}")
    return records


def select(cases: Iterable[Case], sources: Sequence[str], match: str, limit: int) -> Iterator[Case]:
    """The requested cases, with at most `limit` of those that can be expressed."""
    count = 0
    for case in cases:
        if (sources and case.source not in sources) or not re.search(match, case.id):
            continue
        if not case.cannot:
            count += 1
            if limit and count > limit:
                continue
        yield case


def predict(case: Case) -> dict[str, Any]:
    """Bytes by quantity, with the phase of the peak; or the reason why there are none."""
    from axmem_trace import estimate
    from axmem_trace.errors import ConfigError

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        num_gpus = case.num_gpus if case.num_gpus > 1 else 0
        report = estimate(
            case.config, assumptions=case.assumptions, gpu=case.gpu, num_gpus=num_gpus, hub="never", axolotl=AXOLOTL
        )
    except ConfigError as error:
        return {"reason": " ".join(str(error).split())[:160]}
    except Exception as error:  # the other cases are still compared, and the exit code reports the error
        return {"reason": f"{STOPPED} {type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    step = report.phases["step_1"]
    unmeasured = report.resident.adapters if case.adapters_unmeasured else 0
    training = max(report.phases[name].counted_bytes for name in ("step_1", "step_2")) - unmeasured
    return {
        # on several GPUs, each may load the whole model first: the Trainer measures only after that
        "allocated": training if num_gpus else report.peak.counted_bytes,
        "reserved": report.peak.reserved_bytes,
        "device": mean_device_bytes(report),
        "end": report.phases["step_2"].counted_end_bytes - unmeasured,
        "load": report.phases["load"].counted_end_bytes,
        "after_forward": step.phases["forward"].counted_end_bytes,
        "after_backward": step.phases["backward"].counted_end_bytes,
        "passes": max(step.phases[name].counted_bytes for name in ("forward", "backward")),
        "moment": f"{report.peak.phase} {report.peak.step}",
    }


def mean_device_bytes(report: Any) -> int:
    """The mean over all recorded ranks, because fms-acceleration publishes the mean of `nvidia-smi` over the GPUs of a
    run. FSDP1's ranks have shards of different sizes, and the allocator may reserve up to 15 GiB more on one rank than
    on another."""
    rows = [row for row in report.ranks if row.basis == "recorded"]
    if not rows:
        return int(report.peak.device_bytes)
    return sum(row.count * row.device_bytes for row in rows) // sum(row.count for row in rows)


def predict_all(cases: Sequence[Case], *, jobs: int, cache: Path | None) -> Iterator[dict[str, Any]]:
    """A prediction for each case, in order; from the cache if it is there."""
    state = _state_of_package() if cache else ""
    known = [_read_cache(cache, state, case) for case in cases]
    missing = [case for case, found in zip(cases, known, strict=True) if found is None]
    if jobs > 1:
        # a new interpreter for each: the trace patches torch while it runs
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            yield from _in_order(cases, known, pool.map(predict, missing), cache, state)
    else:
        yield from _in_order(cases, known, map(predict, missing), cache, state)


def _in_order(
    cases: Sequence[Case], known: Sequence[Any], fresh: Iterator[dict[str, Any]], cache: Path | None, state: str
) -> Iterator[dict[str, Any]]:
    for case, remembered in zip(cases, known, strict=True):
        found = remembered
        if found is None:
            found = next(fresh)
            if cache is not None and not found.get("reason", "").startswith(STOPPED):
                cache.mkdir(parents=True, exist_ok=True)
                _cache_file(cache, state, case).write_text(json.dumps(found), encoding="utf-8")
        yield found


def _state_of_package() -> str:
    package = SCRIPTS.parent / "axmem_trace"
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cache_file(cache: Path, state: str, case: Case) -> Path:
    asked = json.dumps([state, case.config, case.assumptions, case.gpu, case.num_gpus], sort_keys=True)
    return cache / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"


def _read_cache(cache: Path | None, state: str, case: Case) -> dict[str, Any] | None:
    if cache is None or not (path := _cache_file(cache, state, case)).exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def make_rows(case: Case, predicted: dict[str, Any]) -> Iterator[Row]:
    """One row for each measured quantity."""
    reason = case.cannot or predicted.get("reason", "")
    for quantity, measured in (case.measured or {"nothing": 0.0}).items():
        yield Row(
            id=case.id,
            source=case.source,
            quality=case.quality,
            num_gpus=case.num_gpus,
            quantity=quantity,
            measured=measured,
            predicted=predicted.get(quantity, 0),
            line=case.line,
            rows=case.rows,
            moment=predicted.get("moment", ""),
            reason=reason,
        )


def render_text(rows: Sequence[Row]) -> Iterator[str]:
    """Every row, then the figures of each group."""
    runs, full = [row for row in rows if "-oom-" not in row.id], [row for row in rows if "-oom-" in row.id]
    yield f"{'run':40} {'quality':7} {'quantity':14} {'predicted':>10} {'measured':>10} {'error':>8}  peak"
    for row in runs:
        if row.predicted:
            name = f"{row.id:40} {row.quality:7} {row.quantity:14}"
            yield f"{name} {row.predicted / GIB:10.3f} {row.measured / GIB:10.3f} {row.error:+8.2%}  {row.moment}"
    titles = f"{'rows':>5} {'median':>8} {'median abs':>10} {'90 % within':>11} {'too low':>8} {'worst':>8}"
    yield f"\n{'group':40} {titles}"
    for name, members in group_rows(runs).items():
        figures = summarise([row.error for row in members])
        yield (
            f"{name:40} {figures.count:5} {figures.median:+8.2%} {figures.median_absolute:10.2%}"
            f" {figures.percentile_90:11.2%} {figures.under_rate:8.0%} {figures.worst:+8.2%}"
        )
    yield f"\n{'line (same setup, batch varies)':64} {'intercept (GiB)':>17} {'slope (GiB a row)':>17}"
    for line in fit_lines(runs):
        cells = [f"{line['predicted'][key]:8.3f} {line['measured'][key]:8.3f}" for key in ("intercept", "slope")]
        yield f"{line['line']:64} {cells[0]:>17} {cells[1]:>17}"
    for found in differences(runs):
        error = found["predicted"] / found["measured"] - 1 if found["measured"] else 0.0
        yield f"difference {found['runs']}: {found['predicted']:.3f} {found['measured']:.3f} {error:+.1%}"
    if any(row.predicted for row in full):
        yield "\nruns that did not fit on 80 GB (predicted device memory)"
        for row in full:
            if row.predicted:
                verdict = "does not fit" if row.predicted > CARD_BYTES else "WOULD FIT"
                yield f"{row.id:40} {row.predicted / GIB:10.3f} {verdict}"
    yield "\nnot estimated"
    for name, reason in dict.fromkeys((row.id, row.reason) for row in rows if not row.predicted):
        yield f"{name:40} {reason}"


def render_json(rows: Sequence[Row]) -> str:
    """The same as one JSON object."""
    groups = {name: asdict(summarise([row.error for row in rows])) for name, rows in group_rows(rows).items()}
    return json.dumps(
        {
            "schema_version": 1,
            "runs": [{**asdict(row), "error": row.error if row.predicted else None} for row in rows],
            "groups": groups,
            "lines": fit_lines(rows),
            "differences": differences(rows),
        },
        indent=1,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    if not parsed.directory.exists():
        print(f"{parsed.directory}: no such file or directory", file=sys.stderr)
        return 2
    try:
        cases = read_cases(parsed.directory, only_out_of_memory=parsed.out_of_memory)
    except (OSError, ValueError) as error:
        print(f"compare_published: {error}", file=sys.stderr)
        return 2
    chosen = list(select(cases, parsed.source, parsed.match, parsed.limit))
    able = [case for case in chosen if not case.cannot]
    rows = [row for case in chosen if case.cannot for row in make_rows(case, {})]
    for case, found in zip(able, predict_all(able, jobs=parsed.jobs, cache=parsed.cache), strict=True):
        rows.extend(make_rows(case, found))
        print(f"{case.id}: {found.get('reason', 'estimated')}", file=sys.stderr)
    for text in [render_json(rows)] if parsed.format == "json" else render_text(rows):
        print(text)
    return int(any(row.reason.startswith(STOPPED) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
