"""`axmem_trace compare`: configurations, saved reports and measured runs side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from axmem_trace.cli.run_options import estimate_run
from axmem_trace.cli.terminal import refuse_unwritable, show_progress, write_output
from axmem_trace.errors import EXIT_ESTIMATED, AxmemError, ConfigError
from axmem_trace.quiet import set_quiet_environment

if TYPE_CHECKING:
    from axmem_trace.advice.compare import Column
    from axmem_trace.progress import Progress
    from axmem_trace.report import Report


MAX_RUNS = 26


def run_compare(options: argparse.Namespace) -> int:
    """Estimates or reads each run, and writes the differences from the first run."""
    from axmem_trace.advice.compare import compare
    from axmem_trace.render.comparison import render_comparison

    if len(options.runs) + len(options.tries) < 2:
        raise AxmemError("compare: at least two runs are needed; name another, or change one with --try key=value")
    if len(options.runs) + len(options.tries) > MAX_RUNS:
        raise AxmemError(f"compare: at most {MAX_RUNS} runs have a letter each")
    refuse_unwritable(options.output)
    set_quiet_environment()
    with show_progress(sys.stderr) as progress:
        columns = [*_columns(options, progress)]
    write_output(render_comparison(compare(columns), options.format), options.output)
    return EXIT_ESTIMATED


def _columns(options: argparse.Namespace, progress: Progress | None) -> Iterator[Column]:
    for run in options.runs:
        yield _read_run(run, options, progress)
    for text in options.tries:
        yield _estimate(options.runs[0], shlex.split(text), options, progress, label=text)


def _read_run(run: str, options: argparse.Namespace, progress: Progress | None) -> Column:
    from axmem_trace.advice.compare import make_column
    from axmem_trace.advice.measured import read_log, read_snapshot

    path = Path(run)
    if path.suffix in (".pickle", ".pkl"):
        return read_snapshot(path)
    if path.suffix in (".log", ".txt"):
        return read_log(path)
    if path.suffix == ".json":
        return make_column(run, _read_report(path))
    return _estimate(run, [], options, progress, label=run)


def _read_report(path: Path) -> Report:
    from axmem_trace.report import Report

    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AxmemError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(problem=f"{path} is no report saved with --format json: {error}") from None


def _estimate(
    config: str, overrides: list[str], options: argparse.Namespace, progress: Progress | None, *, label: str
) -> Column:
    from axmem_trace.advice.compare import make_column

    return make_column(label, estimate_run(config, options, progress, overrides=overrides, alternatives=False))
