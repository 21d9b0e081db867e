"""`python -m axmem_trace CONFIG.yml`: arguments, estimate, render, exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from axmem_trace.cli import (
    build_models_parser,
    build_parser,
    check_writable,
    quiet_libraries,
    show_progress,
    write_output,
)
from axmem_trace.errors import EXIT_CONFIG, EXIT_DOES_NOT_FIT, EXIT_ESTIMATED, AxmemError

if TYPE_CHECKING:
    from axmem_trace.report import Report

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see `axmem_trace.errors`).

    A bug of ours leaves as an exception: Python prints its traceback and exits with 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["models"]:
            return list_models(build_models_parser().parse_args(arguments[1:]))
        return run_estimate(build_parser().parse_args(arguments))
    except AxmemError as error:
        print(f"axmem_trace: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("axmem_trace: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def run_estimate(options: argparse.Namespace) -> int:
    """Estimates one configuration, writes the report, and says whether it fits."""
    check_writable(options.output)
    check_writable(options.snapshot)
    with show_progress(sys.stderr) as progress, quiet_libraries():
        from axmem_trace.estimate import estimate

        report = estimate(
            options.config,
            overrides=tuple(options.overrides),
            assumptions=tuple(options.assumptions),
            gpu=options.gpu,
            num_gpus=options.num_gpus,
            hub=options.hub,
            trust_remote_code=options.trust_remote_code,
            strict=options.strict,
            progress=progress,
            snapshot=options.snapshot,
        )
    write_output(render(report, options), options.output)
    return EXIT_DOES_NOT_FIT if report.fits is False else EXIT_ESTIMATED


def render(report: Report, options: argparse.Namespace) -> str:
    """The report in the format asked for."""
    if options.format == "json":
        from axmem_trace.render.json import render_json

        return render_json(report, depth=options.depth)
    if options.format == "html":
        from axmem_trace.render.html import render_html

        return render_html(report, depth=options.depth)
    from axmem_trace.render.text import render_for_stream

    return render_for_stream(report, None if options.output else sys.stdout, depth=options.depth)


def list_models(options: argparse.Namespace) -> int:
    """Prints the bundled base models; a pattern that matches none is an error."""
    from axmem_trace.render.models import find_models, render_models

    entries = find_models(options.pattern)
    if not entries:
        print(f"axmem_trace: no bundled base model matches {options.pattern!r}", file=sys.stderr)
        return EXIT_CONFIG
    write_output(render_models(entries, options.format), None)
    return EXIT_ESTIMATED


if __name__ == "__main__":
    sys.exit(main())
