"""`axmem_trace fit`: finds changes that make a run fit its card. The explanation is written to standard error, the
patch to standard output."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import TYPE_CHECKING

from axmem_trace.cli.run_options import run_arguments
from axmem_trace.cli.terminal import refuse_unwritable, show_current, write_output
from axmem_trace.errors import EXIT_CANNOT_SAY, EXIT_CONFIG, EXIT_DOES_NOT_FIT, EXIT_ESTIMATED
from axmem_trace.quiet import set_quiet_environment

if TYPE_CHECKING:
    from axmem_trace.advice.fitting.fit import Fit

MAX_WIDTH = 120


def run_fit(options: argparse.Namespace) -> int:
    """Finds changes, prints each step, and writes the patch, or the changed file with `-o`."""
    from axmem_trace.advice.fitting.fit import fit

    refuse_unwritable(options.output)
    set_quiet_environment()
    with show_current(sys.stderr) as progress:
        found = fit(
            options.config,
            allow=_words(options.allow),
            keep=_words(options.keep),
            everything=options.all,
            progress=progress,
            **run_arguments(options),
        )
    _write(found, options)
    return _exit_code(found)


def _write(found: Fit, options: argparse.Namespace) -> None:
    from axmem_trace.render.fit import render_fit

    width = min(MAX_WIDTH, shutil.get_terminal_size((80, 24)).columns)
    sys.stderr.write(render_fit(found, width))
    if options.output:
        write_output(found.changed_file, options.output)
    write_output(json.dumps(found.to_dict(), indent=2) + "\n" if options.format == "json" else found.patch, None)


def _exit_code(found: Fit) -> int:
    if found.fits:
        return EXIT_ESTIMATED
    if found.report.refusals:
        return EXIT_CONFIG
    return EXIT_CANNOT_SAY if found.fits is None else EXIT_DOES_NOT_FIT


def _words(given: list[str]) -> list[str]:
    """The values of a repeated option. `a,b` is the same as two options."""
    return [word.strip() for text in given for word in text.split(",") if word.strip()]
