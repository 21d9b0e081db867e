"""The whole process in one module: from a configuration to a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as replace_fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axmem_trace import __version__
from axmem_trace.allocator import replay
from axmem_trace.catalogue.lookup import HubUse
from axmem_trace.config import read_recipe
from axmem_trace.config.axolotl.changed_figures import note_changed_figures
from axmem_trace.errors import AxmemError, ConfigError
from axmem_trace.imports import collector_paused, import_libraries, spare_what_is_there
from axmem_trace.lengths.laws import DifferentEvents
from axmem_trace.lengths.simulate import Simulated, simulate_lengths
from axmem_trace.lengths.when import is_worth_simulating, note_cannot_simulate, note_not_simulated
from axmem_trace.progress import Progress, Stopwatch
from axmem_trace.quiet import aloud, quiet_libraries
from axmem_trace.recipe.lines import errors_in_place
from axmem_trace.report import Report, make_report
from axmem_trace.report.alternatives import compare_alternatives
from axmem_trace.report.ranks import RankRun

if TYPE_CHECKING:
    from axmem_trace.allocator import Reservation
    from axmem_trace.ledger import Ledger
    from axmem_trace.notes import Note
    from axmem_trace.recipe.recipe import Recipe
    from axmem_trace.training.layer_folding import TracedRun

TRACED_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


@quiet_libraries()
def estimate(
    config: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    assumptions: Sequence[str] | Mapping[str, Any] = (),
    gpu: str = "",
    num_gpus: int = 0,
    num_nodes: int = 1,
    margin: str = "",
    hub: HubUse = "fallback",
    trust_remote_code: bool = False,
    strict: bool = False,
    axolotl: str = "",
    progress: Progress | None = None,
    snapshot: str | Path | None = None,
    alternatives: bool = True,
    moments: bool = True,
) -> Report:
    """Predict the GPU memory of the run that an axolotl configuration describes.

    A run may be impossible: axolotl refuses the configuration, or the run certainly fails later. Its report has figures
    too, if they can be known. So look at `report.refusals` before you rent a machine. While the estimate runs, the
    warnings, logs and prints of the traced libraries are hidden.

    Args:
        config: a YAML file (`-`: standard input), or its content as a mapping.
        overrides: changes to the configuration, as `key=value` or as a mapping; a dot in a key names a nested key.
        assumptions: the same, for values that axolotl itself would derive (`autocast=false`, `router=worst`, ...).
        gpu: the card, by name (`H100`) or memory (`24GiB`), and how many (`4 x H100`); the report then says whether it fits.
        num_gpus: number of GPUs in each machine; 0: as in `gpu`, else the smallest number for the configuration.
        num_nodes: number of machines.
        margin: memory that must stay free on each card: a size (`1GiB`) or a share (`5%`). If less stays free, the run
            does not fit.
        hub: when to load a base model's `config.json` from the Hugging Face Hub.
        trust_remote_code: allow the base model's own Python code to run, where the configuration requests it.
        strict: unknown keys, keys given twice and keys that are not modelled are errors.
        progress: called with the name of each stage as it begins.
        snapshot: a file to which the predicted history is written, for PyTorch's memory viewer.
        alternatives: if older releases ran the configuration differently, estimate their run too, and report it in a
            note.
        moments: store the allocated bytes at each of 160 moments (`Report.moments`), for charts.

    Raises:
        ConfigError: the memory of the run can't be known. The message has all reasons, including the refusals, and what
            to do.
        AxmemError: the snapshot can't be written.
    """
    clock = Stopwatch(aloud(progress) if progress else lambda stage: None)
    clock.start("read", "reading")
    recipe = read_recipe(
        config,
        overrides=overrides,
        assumptions=assumptions,
        gpu=gpu,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        margin=margin,
        hub=hub,
        trust_remote_code=trust_remote_code,
        strict=strict,
        axolotl=axolotl,
    )
    with collector_paused():
        clock.start("import", "importing torch, transformers and peft")
        import_libraries()
        spare_what_is_there()
        run = _trace(recipe, clock)
        facts, ledger, notes = run.facts, run.ledger, run.notes
        clock.start("replay", "replaying the allocator")
        reservation = _replay_on_card(recipe, ledger)
        rank_runs = _record_ranks(recipe, run, reservation, clock)
        simulated, more_notes = _vary_lengths(recipe, ledger, reservation, clock)
        if snapshot is not None:
            _write_snapshot(snapshot, recipe, ledger)
        if alternatives and recipe.alternatives:
            clock.start("compare", "estimating what older releases did, or an alternative")
            recipe = compare_alternatives(recipe, reservation.peak_reserved_bytes, _reserved_bytes)
        clock.stop()
        return make_report(
            recipe,
            facts,
            ledger,
            reservation,
            notes=(*notes, *more_notes, *note_changed_figures(recipe, facts, ledger.peak().allocated_bytes)),
            versions={"axmem_trace": __version__, **{library: version(library) for library in TRACED_LIBRARIES}},
            elapsed_seconds=clock.seconds,
            rank_runs=rank_runs,
            moments=moments,
            simulated=simulated,
        )


def _trace(recipe: Recipe, clock: Stopwatch, *, rank: int | None = None) -> TracedRun:
    """The model of one rank, the record of its run, and the notes on both.

    Raises:
        ConfigError: the run can't be recorded. The error includes the refusals that are known already.
    """
    from axmem_trace.training.layer_folding import trace_run
    from axmem_trace.training.shared_traces import trace_once

    with errors_in_place(recipe):
        return trace_once(recipe, rank, lambda watched: trace_run(watched, clock.start, rank=rank))


def _record_ranks(recipe: Recipe, run: TracedRun, reservation: Reservation, clock: Stopwatch) -> list[RankRun]:
    """All groups of ranks; the group of rank 0 is the first. Ranks whose shards have other sizes are recorded too. If
    that would take too long, they get the figures of the recorded rank that needs the most."""
    if not run.groups:
        every = tuple(range(recipe.parallel.num_gpus))
        return [RankRun(ranks=every, ledger=run.ledger, reservation=reservation, recorded=False)]
    runs = {0: RankRun(ranks=(0,), ledger=run.ledger, reservation=reservation)}
    for rank, ledger in _other_ledgers(recipe, run, clock):
        clock.start("replay", "replaying the allocator")
        runs[rank] = RankRun(ranks=(), ledger=ledger, reservation=_replay_on_card(recipe, ledger))
    rows = [replace_fields(runs[group.ranks[0]], ranks=group.ranks) for group in run.groups if group.recorded]
    others = sorted(rank for group in run.groups if not group.recorded for rank in group.ranks)
    if others:
        worst = max(rows, key=lambda row: row.reservation.peak_reserved_bytes)
        rows.append(replace_fields(worst, ranks=tuple(others), recorded=False))
    return rows


def _other_ledgers(recipe: Recipe, run: TracedRun, clock: Stopwatch) -> Iterator[tuple[int, Ledger]]:
    """The first rank of each recorded group but rank 0's, and its ledger. One trace may have recorded several ranks."""
    known = dict(run.other_ranks)
    for rank in [group.ranks[0] for group in run.groups if group.recorded][1:]:
        if rank not in known:
            other = _trace(recipe, clock, rank=rank)
            known |= {**other.other_ranks, rank: other.ledger}
        yield rank, known[rank]


def _vary_lengths(
    recipe: Recipe, ledger: Ledger, reservation: Reservation, clock: Stopwatch
) -> tuple[Simulated | None, tuple[Note, ...]]:
    """The run with batches of different lengths, if that is requested or could change the verdict; and notes on it."""
    if not recipe.lengths.vary:
        return None, ()
    capacity_bytes = _capacity_bytes(recipe)
    if not is_worth_simulating(recipe, reservation, capacity_bytes):
        return None, note_not_simulated(recipe)
    clock.start("lengths", "simulating batches that differ in length")
    try:
        simulated = simulate_lengths(
            recipe,
            ledger,
            lambda other: _trace(other, Stopwatch(lambda stage: None)).ledger,
            capacity_bytes=capacity_bytes,
        )
    except (DifferentEvents, ConfigError) as reason:
        return None, note_cannot_simulate(recipe, str(reason))
    return simulated, ()


@quiet_libraries()
def record_ledgers(recipe: Recipe) -> list[Ledger]:
    """The allocations of a run: one ledger for each recorded group of ranks; the group of rank 0 is the first.

    Raises:
        ConfigError: the run can't be recorded.
    """
    silent = Stopwatch(lambda stage: None)
    with collector_paused():
        import_libraries()
        spare_what_is_there()
        run = _trace(recipe, silent)
        return [run.ledger, *(ledger for _, ledger in _other_ledgers(recipe, run, silent))]


def _reserved_bytes(recipe: Recipe) -> int:
    """The largest number of bytes that the allocator would reserve with unlimited memory."""
    return replay(_trace(recipe, Stopwatch(lambda stage: None)).ledger, recipe.allocator).peak_reserved_bytes


def _capacity_bytes(recipe: Recipe) -> int:
    """How many bytes of the card the allocator may reserve; 0 if no card was named."""
    return max(0, recipe.gpu.memory_bytes - recipe.gpu.outside_bytes)


def _replay_on_card(recipe: Recipe, ledger: Ledger) -> Reservation:
    """The reservation on the named card. If the card is too small, the reservation with unlimited memory, so that the
    report says how much is needed."""
    from axmem_trace.training.shared_traces import replay_once

    on_card = replay_once(ledger, recipe.allocator, capacity_bytes=_capacity_bytes(recipe))
    if on_card.out_of_memory is None:
        return on_card
    return replace_fields(replay_once(ledger, recipe.allocator), out_of_memory=on_card.out_of_memory)


def _write_snapshot(path: str | Path, recipe: Recipe, ledger: Ledger) -> None:
    from axmem_trace.snapshot import write_snapshot

    try:
        write_snapshot(path, ledger, recipe.allocator, capacity_bytes=_capacity_bytes(recipe))
    except OSError as error:
        raise AxmemError(f"{path}: cannot be written: {error.strerror or error}") from error
