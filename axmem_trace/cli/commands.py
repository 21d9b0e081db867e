"""The function of each command: it takes the arguments and returns the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from axmem_trace.cli.run_options import estimate_run
from axmem_trace.cli.terminal import refuse_unwritable, show_progress, write_output
from axmem_trace.errors import EXIT_CANNOT_SAY, EXIT_CONFIG, EXIT_DOES_NOT_FIT, EXIT_ESTIMATED, AxmemError
from axmem_trace.files import shortened_path
from axmem_trace.quiet import set_quiet_environment

if TYPE_CHECKING:
    from axmem_trace.report import Report


def run_estimate(options: argparse.Namespace) -> int:
    """Estimates one configuration and writes the report. The exit code says whether the run is possible, and whether it
    fits."""
    refuse_unwritable(options.output)
    refuse_unwritable(options.snapshot)
    set_quiet_environment()
    try:
        with show_progress(sys.stderr) as progress:
            report = estimate_run(
                options.config, options, progress, snapshot=options.snapshot, moments=wants_moments(options)
            )
    except AxmemError as error:
        if options.format == "json":
            from axmem_trace.render.json import render_no_report

            write_output(render_no_report(error), options.output)
        raise
    write_output(render(report, options), options.output)
    if report.refusals:
        report_refusals(report, in_full=bool(options.output) or options.format != "text" or not wants_all(options))
        return EXIT_CONFIG
    if report.why:
        return EXIT_CANNOT_SAY
    return EXIT_DOES_NOT_FIT if report.fits is False else EXIT_ESTIMATED


def report_refusals(report: Report, *, in_full: bool) -> None:
    """Writes to standard error why the run is impossible. `in_full`: with all details, because the text on standard
    output does not have them."""
    from axmem_trace.render.lines import describe_refusals, refusal_lines

    config = report.run.get("config", "")
    print(f"axmem_trace: {config}: this run can't run: {describe_refusals(report)}", file=sys.stderr)
    for line in refusal_lines(report) if in_full else ():
        print(f"  {line}", file=sys.stderr)


def render(report: Report, options: argparse.Namespace) -> str:
    """The report in the chosen format."""
    if options.format == "json":
        from axmem_trace.render.json import render_json

        return render_json(report, brief=not wants_all(options), depth=options.depth)
    if options.format == "html":
        from axmem_trace.render.html.document import render_page

        return render_page(report, depth=options.depth)
    from axmem_trace.render.text import render_for_stream

    stream = None if options.output else sys.stdout
    return render_for_stream(report, stream, full=wants_all(options), depth=options.depth)


def wants_all(options: argparse.Namespace) -> bool:
    """True if the full report is requested: by `--full`, or by `--depth`, which is about its table of modules."""
    return options.full or options.depth is not None


def wants_moments(options: argparse.Namespace) -> bool:
    """True if the output has the allocated memory at each moment: a page, or the JSON from which a page can be made."""
    return options.format == "html" or (options.format == "json" and wants_all(options))


def run_page(options: argparse.Namespace) -> int:
    """Makes a page of a saved report. It needs only the report's file."""
    from axmem_trace.render.html.document import render_page
    from axmem_trace.report import Report

    refuse_unwritable(options.output)
    try:
        report = Report.from_json(_read(options.report))
        fit = json.loads(_read(options.fit)) if options.fit else None
    except ValueError as error:
        raise AxmemError(f"{shortened_path(options.report)}: not a report of `--format json`: {error}") from error
    write_output(render_page(report, fit=fit), options.output)
    return EXIT_ESTIMATED


def _read(path: Path) -> str:
    """Raises:
    AxmemError: the file can't be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AxmemError(f"{shortened_path(path)}: cannot be read: {error}") from error


def list_models(options: argparse.Namespace) -> int:
    """Prints the bundled base models. A pattern that matches none is an error."""
    from axmem_trace.catalogue.table import nearest_ids
    from axmem_trace.render.catalogue import find_models, render_models

    entries = find_models(options.pattern)
    if not entries:
        problem = f"no bundled base model matches {options.pattern!r}"
        return report_nothing_found(problem, nearest_ids(options.pattern), "`axmem_trace models` lists all")
    write_output(render_models(entries, options.format), None)
    return EXIT_ESTIMATED


def report_nothing_found(problem: str, nearest: Sequence[str], remedy: str) -> int:
    """Writes to standard error that a pattern matches nothing, with the nearest names; without such names, with
    `remedy`."""
    hint = f"nearest: {', '.join(nearest)}" if nearest else remedy
    print(f"axmem_trace: {problem}; {hint}", file=sys.stderr)
    return EXIT_CONFIG
