"""`record_run`: the built model and its optimizer to a ledger, with everything of the trace opened around the run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from axmem_trace.imports import collector_paused
from axmem_trace.kernels.core.autograd_in_place import assert_seen_from_engine
from axmem_trace.kernels.install import gpu_rules, install_kernels, install_on_second_model
from axmem_trace.kernels.site import Site
from axmem_trace.ledger import Ledger
from axmem_trace.models.built import BuiltModel
from axmem_trace.notes import Note
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
    """The result of a trace: the ledger, and the notes of the kernels' rules."""

    ledger: Ledger
    notes: tuple[Note, ...]


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
    """Runs on meta what a GPU would run: evaluation, if it comes first, and two optimizer steps.

    Args:
        recording: of `make_recording`, which has recorded loading; without it the whole model is allocated at once.
        repeat: copy the second step's passes from the record of the first (see `Run`).
        rank_model: the model is one rank's part of a distributed one (see `parallel/install.py`).
    """
    recording = recording or make_recording(recipe)
    recorder = recording.recorder
    mode = CudaMode(recording)
    with ExitStack() as stack:
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
        run.record(progress or (lambda stage: None))
        ledger = recorder.make_ledger()
    return Recording(ledger, tuple(recorder.notes))


@contextmanager
def garbage_on_demand() -> Iterator[None]:
    """Reference cycles are collected where the recorder marks a phase and nowhere else.

    Otherwise Python would walk the whole model again and again, and tensors in a cycle would be freed at random times.
    """
    gc.collect()
    with collector_paused():
        yield


def make_recording(recipe: Recipe) -> RecordingMode:
    """One recording of loading and training, which knows the recipe's card from the beginning: a block that the process
    allocates once (cuBLAS's workspace) is allocated once in the whole run."""
    context = KernelContext(
        compute_capability=recipe.gpu.compute_capability,
        attention=recipe.attention.kernel,
        repeats_kv=recipe.older.repeats_kv,
        mean_keeps_input=recipe.older.mean_keeps_input,
        int8_outliers=recipe.quantisation.int8_outliers,
    )
    return RecordingMode(context, gpu_rules())
