"""`record_run`: makes a ledger from the built model and its optimizer. It opens all contexts of the trace around the
run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from axmem_trace.imports import collector_paused
from axmem_trace.kernels.core.autograd_in_place import assert_seen_from_engine
from axmem_trace.kernels.install import gpu_rules, install_kernels, install_on_second_model
from axmem_trace.kernels.site import Site
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.windows import BatchWindows
from axmem_trace.models.built import BuiltModel
from axmem_trace.notes import Note, Notes
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.cuda_mode import CudaMode
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.failures import model_failures_reported
from axmem_trace.training.offloading import install_offloading
from axmem_trace.training.optimizers.traced import TracedOptimizer
from axmem_trace.training.run import Run


@dataclass(frozen=True, slots=True)
class Recording:
    """The result of a trace: the ledger, the notes of the kernels' rules, and the parts that depend on the batches.

    Attributes:
        notes: those of loading and of the run; `own_notes`: those of the run; `batch_notes`: see `Run`.
        is_reusable: see `Run`.
        held: the blocks that were allocated for the whole process before the run (`KernelContext.held`).
        other_ranks: ledgers of ranks whose optimizer's steps were recorded too, by rank.
    """

    ledger: Ledger
    notes: tuple[Note, ...]
    own_notes: tuple[Note, ...]
    batch_notes: frozenset[Note]
    windows: BatchWindows
    is_reusable: bool
    held: frozenset[str] = frozenset()
    other_ranks: Mapping[int, Ledger] = field(default_factory=dict)


def record_run(
    recipe: Recipe,
    built: BuiltModel,
    optimizer: TracedOptimizer,
    *,
    recording: RecordingMode | None = None,
    progress: Callable[[str], None] | None = None,
    repeat: bool = True,
    rank_model: RankModel | None = None,
) -> Recording:
    """Runs on meta the same work as on a GPU: evaluation, if it is first, and two optimizer steps.

    Args:
        recording: the result of `make_recording`, which has recorded loading. Without it, the whole model is allocated
            at once.
        repeat: whether the second step's passes are copied from the record of the first step (see `Run`).
        rank_model: given if the model is one rank's part of a distributed model (see `parallel/install.py`).
    """
    recording = recording or make_recording(recipe)
    loading, held = recording.recorder.notes, frozenset(recording.context.held)
    with _opened(recipe, built, optimizer, recording, repeat=repeat, rank_model=rank_model) as run:
        run.record(progress or (lambda stage: None))
        ledger, others = recording.recorder.make_ledger(), dict[int, Ledger]()
        if run.other_steps is not None:
            ledger, others = run.other_steps.split(ledger)
    own = tuple(recording.recorder.notes)
    notes = tuple(Notes((*loading, *own)))
    return Recording(ledger, notes, own, frozenset(run.batch_notes), run.windows, run.is_reusable, held, others)


def record_batches(
    recipe: Recipe, built: BuiltModel, optimizer: TracedOptimizer, recording: RecordingMode, held: frozenset[str]
) -> Recording:
    """Runs again only the parts that depend on the batches: evaluation, and one micro-batch of the first step.

    Args:
        recipe: the recipe of the run in `recording`, but with other batches.
        recording: the recording of that run. At the end, the new allocations are removed from it.
        held: see `Recording`.

    Returns:
        A ledger of the new events only.
    """
    recorder = recording.recorder
    start, layers, recorder.layers = recorder.now, recorder.layers, None
    recording.context.held = set(held)
    recorder.values.num_true.clear()
    try:
        with _opened(recipe, built, optimizer, recording) as run:
            run.record_batches()
            ledger = recorder.make_ledger(since=start)
    finally:
        built.module.zero_grad(set_to_none=True)
        recorder.forget_since(start)
        recorder.layers = layers
    own = tuple(recorder.notes)
    return Recording(ledger, own, own, frozenset(run.batch_notes), run.windows, run.is_reusable)


@contextmanager
def _opened(
    recipe: Recipe,
    built: BuiltModel,
    optimizer: TracedOptimizer,
    recording: RecordingMode,
    *,
    repeat: bool = True,
    rank_model: RankModel | None = None,
) -> Iterator[Run]:
    """Yields a run with everything installed around it. The recorder's notes begin here."""
    recorder = recording.recorder
    recorder.notes = Notes()
    with ExitStack() as stack:
        stack.enter_context(recording.additions_undone())
        mode = CudaMode(recording)
        site = Site(built.module, recipe, recording, stack)
        run = Run(
            recipe,
            built,
            optimizer,
            recorder,
            offloading=partial(install_offloading, site),
            repeat=repeat,
            rank_model=rank_model,
        )
        stack.enter_context(garbage_on_demand())
        assert_seen_from_engine()
        stack.enter_context(recording)
        stack.enter_context(recorder.watch(built.module, **run.objective.extra_models()))
        install_kernels(site)
        if built.reference is not None and recipe.objective.reference.dtype == "policy":
            install_on_second_model(replace(site, model=built.reference))
        stack.enter_context(mode.opened())
        stack.enter_context(model_failures_reported(built, recipe))
        yield run


@contextmanager
def garbage_on_demand() -> Iterator[None]:
    """While open, reference cycles are collected only when the recorder marks a phase.

    Otherwise Python would visit the whole model many times, and tensors in a cycle would be freed at random times.
    """
    gc.collect()
    with collector_paused():
        yield


def make_recording(recipe: Recipe) -> RecordingMode:
    """Makes one recording for loading and training. It has the recipe's card from the beginning, so a block that the
    process allocates once (cuBLAS's workspace) is recorded once in the whole run."""
    context = KernelContext(
        compute_capability=recipe.gpu.compute_capability,
        attention=recipe.attention.kernel,
        repeats_kv=recipe.older.repeats_kv,
        mean_keeps_input=recipe.older.mean_keeps_input,
        int8_outliers=recipe.quantisation.int8_outliers,
    )
    return RecordingMode(context, gpu_rules())
