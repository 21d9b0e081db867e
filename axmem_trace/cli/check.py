"""`axmem_trace check`: one line for each configuration, for a pre-commit hook or CI."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from axmem_trace.cli.run_options import estimate_run
from axmem_trace.cli.terminal import show_progress, write_output
from axmem_trace.errors import EXIT_CANNOT_SAY, EXIT_CONFIG, EXIT_DOES_NOT_FIT, EXIT_ESTIMATED, AxmemError
from axmem_trace.quiet import set_quiet_environment

if TYPE_CHECKING:
    from axmem_trace.progress import Progress

SEVERITY = (EXIT_ESTIMATED, EXIT_CANNOT_SAY, EXIT_DOES_NOT_FIT, EXIT_CONFIG)
"""Exit codes in increasing severity; the command returns the most severe one."""


def run_check(options: argparse.Namespace) -> int:
    """Checks each configuration, even if others fail."""
    set_quiet_environment()
    codes = [EXIT_ESTIMATED]
    for config in options.configs:
        with show_progress(sys.stderr) as progress:
            code, line = _check(config, options, progress)
        codes.append(code)
        write_output(f"{config}: {line}\n", None)
    return max(codes, key=SEVERITY.index)


def _check(config: str, options: argparse.Namespace, progress: Progress | None) -> tuple[int, str]:
    """The exit code of one configuration, and its line."""
    from axmem_trace.render.describe import describe_verdict

    try:
        report = estimate_run(config, options, progress)
    except AxmemError as error:
        return error.exit_code, str(error).partition("\n")[0]
    if report.refusals:
        first, *others = report.refusals
        rest = f", and {len(others)} more" if others else ""
        return EXIT_CONFIG, f"can't run: {first.key}: {first.reason}{rest}"
    code = EXIT_CANNOT_SAY if report.why else EXIT_DOES_NOT_FIT if report.fits is False else EXIT_ESTIMATED
    return code, describe_verdict(report) + (f" ({report.why})" if report.why else "")
