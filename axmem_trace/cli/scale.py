"""`axmem_trace scale`: the same run on 1, 2, 4, 8 and 16 GPUs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from axmem_trace.cli.parser import add_run_arguments
from axmem_trace.cli.run_options import estimate_run
from axmem_trace.cli.terminal import show_progress, write_output
from axmem_trace.config.grown_mesh import grow_mesh
from axmem_trace.errors import EXIT_CANNOT_SAY, EXIT_CONFIG, EXIT_DOES_NOT_FIT, EXIT_ESTIMATED
from axmem_trace.quiet import set_quiet_environment

if TYPE_CHECKING:
    from axmem_trace.advice.gpu_counts import CountFit
    from axmem_trace.progress import Progress
    from axmem_trace.report import Report


def build_scale_parser() -> argparse.ArgumentParser:
    """The parser of `scale`."""
    parser = argparse.ArgumentParser(
        prog="axmem_trace scale",
        description="The same run on 1, 2, 4, 8 and 16 GPUs, with the engine that the configuration names.",
        epilog="exit codes: as of an estimate; 3 if a card is named and the run fits with none of these numbers",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yml", help="an axolotl configuration; - reads standard input")
    add_run_arguments(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    return parser


def run_scale(options: argparse.Namespace) -> int:
    """Writes one line for each number of GPUs."""
    from axmem_trace.advice.gpu_counts import fit_counts
    from axmem_trace.catalogue.gpus import split_count
    from axmem_trace.render.gpu_counts import render_counts

    set_quiet_environment()
    _, card = split_count(options.gpu) if options.gpu else (0, "")
    with show_progress(sys.stderr) as progress:
        fits = fit_counts(lambda gpus, nodes: _estimate_with(gpus, nodes, card, options, progress))
    write_output(render_counts(fits, options.format), None)
    return _exit_code(fits, named=bool(card))


def _exit_code(fits: list[CountFit], *, named: bool) -> int:
    if all(fit.reason and not fit.verdict for fit in fits):
        return EXIT_CONFIG
    if not named or any(fit.fits for fit in fits):
        return EXIT_ESTIMATED
    return EXIT_CANNOT_SAY if any(fit.verdict == "cannot say" for fit in fits) else EXIT_DOES_NOT_FIT


def _estimate_with(gpus: int, nodes: int, card: str, options: argparse.Namespace, progress: Progress | None) -> Report:
    def report_stage(stage: str) -> None:
        if progress:
            progress(f"{gpus * nodes} GPUs: {stage}")

    return estimate_run(
        options.config,
        options,
        report_stage,
        overrides=grow_mesh(options.config, options.overrides, gpus * nodes),
        gpu=card,
        num_gpus=gpus,
        num_nodes=nodes,
        alternatives=False,
    )
