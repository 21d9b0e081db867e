"""`axmem_trace gpus`: the cards that a run fits, and the table of cards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from axmem_trace.cli.commands import report_nothing_found
from axmem_trace.cli.run_options import estimate_run, read_run
from axmem_trace.cli.terminal import show_current, write_output
from axmem_trace.config.grown_mesh import grow_mesh
from axmem_trace.errors import EXIT_CANNOT_SAY, EXIT_CONFIG, EXIT_DOES_NOT_FIT, EXIT_ESTIMATED, AxmemError
from axmem_trace.imports import collector_paused
from axmem_trace.quiet import quiet_libraries, set_quiet_environment

if TYPE_CHECKING:
    from axmem_trace.advice.card_table import Run
    from axmem_trace.advice.cards import CardFit
    from axmem_trace.progress import Progress
    from axmem_trace.recipe.recipe import Recipe
    from axmem_trace.report import Report

COUNTS = (1, 2, 4, 8)
"""The numbers of each card, if the user gives none."""


def run_gpus(options: argparse.Namespace) -> int:
    """Lists cards, or estimates a configuration on them.

    Exit codes if the run fits no card: 4 if one card has no verdict, 3 if the run is possible, 2 if it is impossible on
    all cards.
    """
    if options.list:
        return list_gpus(options)
    if not options.config:
        raise AxmemError("gpus: name a configuration, or list the cards with --list")
    if options.counts and options.num_gpus:
        raise AxmemError("gpus: --gpus is one number of cards, --counts are several: give one of them")
    from axmem_trace.advice.card_table import fit_table
    from axmem_trace.advice.processes import num_workers
    from axmem_trace.catalogue.gpus import list_cards, list_usual_cards
    from axmem_trace.render.cards import render_fits

    set_quiet_environment()
    cards = list_cards() if options.all else list_usual_cards()
    counts = options.counts or ((options.num_gpus,) if options.num_gpus else COUNTS)
    with show_current(sys.stderr) as progress, collector_paused():
        run = _make_run(options, progress)
        fits = fit_table(run, cards, counts, everything=options.all, workers=num_workers())
    write_output(render_fits(fits, options.format, everything=options.all), None)
    return _exit_code(fits)


def _make_run(options: argparse.Namespace, progress: Progress | None) -> Run:
    from axmem_trace.advice.card_table import Run
    from axmem_trace.advice.cards import RunRefused
    from axmem_trace.imports import import_libraries

    def recipe_on(name: str, count: int, micro_batch: int) -> Recipe:
        changes = grow_mesh(options.config, options.overrides, count)
        changes += (f"micro_batch_size={micro_batch}",) if micro_batch else ()
        return read_run(options.config, options, overrides=changes, gpu=name, num_gpus=count)

    def estimate_on(name: str, count: int) -> Report:
        recipe = recipe_on(name, count, 0)
        if recipe.refusals:
            raise RunRefused(recipe.refusals[0].text)
        return _estimate_on(name, count, options, progress)

    if progress:
        progress("importing torch, transformers and peft")
    with quiet_libraries():
        import_libraries()
    return Run(estimate_on=estimate_on, recipe_on=recipe_on, micro_batch=_read_micro_batch(options))


def _read_micro_batch(options: argparse.Namespace) -> int:
    """The value in the configuration, including changes by `--set`; axolotl's default is 1."""
    from axmem_trace.config.document.overrides import apply_overrides, parse_settings
    from axmem_trace.config.document.yaml_reader import read_document

    values, _ = apply_overrides(read_document(options.config).values, dict(parse_settings(options.overrides, "--set")))
    found = values.get("micro_batch_size", 1)
    return found if isinstance(found, int) and found > 0 else 0


def _exit_code(fits: Sequence[CardFit]) -> int:
    verdicts = {fit.verdict for fit in fits}
    if any(fit.fits for fit in fits):
        return EXIT_ESTIMATED
    if "cannot say" in verdicts:
        return EXIT_CANNOT_SAY
    return EXIT_DOES_NOT_FIT if "does not fit" in verdicts else EXIT_CONFIG


def list_gpus(options: argparse.Namespace) -> int:
    """Prints the cards that are known by name. A pattern that matches none is an error."""
    from axmem_trace.catalogue.gpus import nearest_names
    from axmem_trace.render.cards import find_cards, render_cards

    cards = find_cards(options.config)
    if not cards:
        problem = f"no card matches {options.config!r}"
        return report_nothing_found(problem, nearest_names(options.config), "`axmem_trace gpus --list` lists all")
    write_output(render_cards(cards, options.format), None)
    return EXIT_ESTIMATED


def _estimate_on(name: str, count: int, options: argparse.Namespace, progress: Progress | None) -> Report:
    def report_stage(stage: str) -> None:
        if progress:
            progress(f"{count} x {name}: {stage}" if count else f"{name}: {stage}")

    changes = grow_mesh(options.config, options.overrides, count)
    return estimate_run(
        options.config, options, report_stage, overrides=changes, gpu=name, num_gpus=count, alternatives=False
    )
