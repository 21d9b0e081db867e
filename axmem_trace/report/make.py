"""`make_report`: makes one `Report` from recipe, model facts, ledger and reservation. Every sum is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from axmem_trace.allocator.reservation import Reservation
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.spans import survey
from axmem_trace.lengths.simulate import Simulated
from axmem_trace.lengths.when import open_share
from axmem_trace.model_facts import ModelFacts
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.recipe.lines import notes_in_place
from axmem_trace.recipe.pins import find_other_libraries
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.accuracy import find_accuracy, find_kind
from axmem_trace.report.bounds import Recorded, bound_notes
from axmem_trace.report.device_range import find_range
from axmem_trace.report.dtypes import make_dtypes
from axmem_trace.report.engine import make_engine
from axmem_trace.report.holders import HolderNames
from axmem_trace.report.logged import make_logged
from axmem_trace.report.machine import make_machine
from axmem_trace.report.modules import make_module_rows
from axmem_trace.report.moments import make_moments
from axmem_trace.report.need import find_need
from axmem_trace.report.peak import make_out_of_memory, make_peak
from axmem_trace.report.phases import make_phases, make_timeline
from axmem_trace.report.ranks import RankRun, host_by_rank, make_division, make_ranks
from axmem_trace.report.report import Report
from axmem_trace.report.resident import make_elsewhere, make_resident
from axmem_trace.report.run_types import AxolotlRelease, BatchShape, Choice, ModelSummary, Refusal, TargetGpu
from axmem_trace.report.types import AfterLoad, Buckets, Host
from axmem_trace.report.varying import make_varying
from axmem_trace.report.verdict import bytes_besides_activations, explain_tight, judge, name_verdict
from axmem_trace.report.warn import note_costly_evaluation, note_other_libraries
from axmem_trace.report.wording import describe_run


def make_report(
    recipe: Recipe,
    facts: ModelFacts,
    ledger: Ledger,
    reservation: Reservation,
    *,
    notes: Sequence[Note],
    versions: Mapping[str, str],
    elapsed_seconds: Mapping[str, float],
    rank_runs: Sequence[RankRun] = (),
    moments: bool = False,
    simulated: Simulated | None = None,
) -> Report:
    """Classifies and sums the recorded facts.

    Args:
        reservation: that of the whole run. If the card is too small, it is a replay with unlimited memory, but with the
            `out_of_memory` of the replay on the named card. Then the figures say how much memory would be needed.
        notes: the notes of every stage; the recipe's own notes are added if they are missing.
        versions: those of the traced libraries.
        elapsed_seconds: seconds by stage.
        moments: whether `Report.moments` is made too.
        rank_runs: with several GPUs, the groups of ranks; the group of rank 0 is the first. `ledger` and `reservation`
            are those of rank 0.
        simulated: the run with batches of different lengths; None: it was not simulated.
    """
    found, names = survey(ledger), HolderNames(facts)
    peak = make_peak(recipe, names, found, reservation)
    buckets, resident = Buckets(**found.peak.buckets), make_resident(facts, ledger)
    phases = make_phases(found, reservation)
    failure = make_out_of_memory(names, ledger, reservation)
    memory_bytes = recipe.gpu.memory_bytes
    late = (*note_costly_evaluation(recipe, phases), *note_other_libraries(recipe.axolotl, versions))
    recorded = Recorded(
        ledger=ledger,
        tick=peak.tick,
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=peak.reserved_bytes,
        buckets=buckets,
        gradient_bytes=resident.gradients,
        head_elements=facts.trained_head_elements(recipe.model.embedding_names),
    )
    shown = bound_notes(notes_in_place(recipe, (*recipe.notes, *notes, *late)), recorded)
    engine = make_engine(recipe, peak, phases)
    ranks = make_ranks(recipe, rank_runs, names=names if moments else None)
    varying = make_varying(recipe, simulated, peak.reserved_bytes)
    need = find_need(recipe, peak, engine=engine, ranks=ranks, runs=rank_runs, failure=failure, varying=varying)
    figures_fit = (need.bytes + recipe.gpu.margin_bytes <= memory_bytes and need.can_run) if memory_bytes else None
    within = not memory_bytes or bytes_besides_activations(buckets) <= memory_bytes
    headroom_bytes = memory_bytes - need.bytes if memory_bytes else None
    free_bytes = headroom_bytes - recipe.gpu.margin_bytes if headroom_bytes is not None else None
    fits, why = judge(figures_fit, shown, fits_without_activations=within, free_bytes=free_bytes)
    accuracy, not_simulated = find_accuracy(find_kind(recipe)), open_share(recipe, shown)
    tight_share = max(accuracy.tight_share, not_simulated)
    verdict = name_verdict(fits, why, headroom_bytes, memory_bytes, tight_share=tight_share)
    is_tight = verdict == "tight"
    report = Report(
        run=describe_run(recipe, ranks),
        model=_make_model(facts),
        batch=_make_batch(recipe),
        gpu=_make_gpu(recipe),
        peak=peak,
        fits=fits,
        why=why,
        verdict=verdict,
        tight_because=explain_tight(accuracy.tight_share, not_simulated, shown, need.bytes) if is_tight else "",
        accuracy=replace(accuracy, tight_share=tight_share),
        headroom_bytes=headroom_bytes,
        out_of_memory=need.failure,
        needed_bytes=need.bytes,
        device_range=find_range(need.bytes, num_gpus=recipe.parallel.num_gpus),
        varying_rows=varying,
        engine=engine,
        after_load=AfterLoad(allocated_bytes=phases["load"].end_bytes if "load" in phases else 0),
        phases=phases,
        logged=make_logged(recipe, phases),
        buckets=buckets,
        ranks=ranks,
        machine=make_machine(recipe, facts, host_by_rank(recipe, rank_runs), ranks),
        division=make_division(recipe, facts, ledger, resident),
        holders=names.list_alive(ledger, peak.tick),
        resident=resident,
        host=Host(cpu=make_elsewhere(ledger, "cpu"), managed=make_elsewhere(ledger, "managed")),
        modules=make_module_rows(facts, ledger, peak_tick=peak.tick),
        dtypes=make_dtypes(facts),
        timeline=make_timeline(ledger, reservation),
        moments=make_moments(ledger, reservation, names) if moments else (),
        choices=_make_choices(recipe),
        refusals=_make_refusals(shown),
        notes=tuple(note for note in shown if not isinstance(note, RefusalNote)),
        versions=dict(versions),
        elapsed_seconds=dict(elapsed_seconds),
        axolotl=_make_axolotl(recipe, versions),
    )
    assert_adds_up(report, ledger)
    return report


def assert_adds_up(report: Report, ledger: Ledger) -> None:
    """Checks every table against an independent total. A failure is a bug in this package."""
    peak, resident, rows = report.peak, report.resident, report.modules
    totals = {
        "buckets and the allocated peak": (report.buckets.total, peak.allocated_bytes),
        "holders and the allocated peak": (sum(holder.bytes for holder in report.holders), peak.allocated_bytes),
        "the peak and what is alive then": (peak.allocated_bytes, ledger.allocated_at(peak.tick)),
        "the peak and the ledger's own": (peak.allocated_bytes, ledger.peak().allocated_bytes),
        "dtypes and resident weights": (sum(row.bytes for row in report.dtypes), resident.weights + resident.adapters),
        "module weights": (sum(row.weight_bytes for row in rows), resident.weights + resident.adapters),
        "module gradients": (sum(row.gradient_bytes for row in rows), resident.gradients),
        "module optimizer states": (sum(row.optimizer_bytes for row in rows), resident.optimizer),
        "module activations": (sum(row.activation_bytes for row in rows), report.buckets.activations),
        "module parameters": (sum(row.parameters for row in rows), report.model.parameters),
        "trainable": (sum(row.trainable_parameters for row in rows), report.model.trainable_parameters),
    }
    for what, (found, expected) in totals.items():
        assert found == expected, f"{what} do not agree: {found} and {expected}"


def _make_refusals(notes: Sequence[Note]) -> tuple[Refusal, ...]:
    """The refusals in the order of the file's lines. Reasons without a line are at the end."""
    refusals = [
        Refusal(key=note.key, line=note.line, value=note.value, reason=note.text, remedy=note.remedy)
        for note in notes
        if isinstance(note, RefusalNote)
    ]
    return tuple(sorted(dict.fromkeys(refusals), key=lambda each: (each.line == 0, each.line)))


def _make_model(facts: ModelFacts) -> ModelSummary:
    return ModelSummary(
        name=facts.name,
        model_type=facts.model_type,
        class_name=facts.class_name,
        config_source=facts.config_source,
        parameters=facts.parameters,
        trainable_parameters=facts.trainable_parameters,
    )


def _make_batch(recipe: Recipe) -> BatchShape:
    batch = recipe.batch
    return BatchShape(
        rows=batch.rows,
        row_tokens=batch.row_tokens,
        packed=batch.packed,
        samples_per_row=batch.samples_per_row,
        gradient_accumulation_steps=batch.gradient_accumulation_steps,
    )


def _make_gpu(recipe: Recipe) -> TargetGpu:
    gpu = recipe.gpu
    return TargetGpu(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        context_bytes=gpu.context_bytes,
        count=gpu.count,
        margin_bytes=gpu.margin_bytes,
        margin_share=gpu.margin_share,
    )


def _make_axolotl(recipe: Recipe, versions: Mapping[str, str]) -> AxolotlRelease:
    reason = recipe.reasons.get("axolotl.version")
    return AxolotlRelease(
        version=recipe.axolotl.version,
        reason=reason.text if reason else "",
        origin=reason.origin if reason else "",
        other_libraries=find_other_libraries(recipe.axolotl.pins, versions),
    )


def _make_choices(recipe: Recipe) -> dict[str, Choice]:
    return {
        path: Choice(value=reason.value, text=reason.text, origin=reason.origin, line=reason.line)
        for path, reason in recipe.reasons.items()
    }
