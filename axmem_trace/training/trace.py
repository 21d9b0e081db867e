"""`record_run`: the built model and its optimizer to a ledger, with everything of the trace opened around the run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from axmem_trace.imports import collector_paused
from axmem_trace.kernels import import_rules
from axmem_trace.kernels.attention import install_attention
from axmem_trace.kernels.axolotl.gemma4_hybrid import install_gemma4_hybrid
from axmem_trace.kernels.experts import install_experts
from axmem_trace.kernels.install import install_fused_kernels
from axmem_trace.kernels.scans import install_scans
from axmem_trace.ledger import Ledger
from axmem_trace.models.built import BuiltModel
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.cuda_mode import CudaMode
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.failures import model_stops_told
from axmem_trace.training.offloading import install_offloading
from axmem_trace.training.optimizers.traced import TracedOptimizer
from axmem_trace.training.run import Run


@dataclass(frozen=True, slots=True)
class Recording:
    """What a trace yields: the facts, and what the kernels' rules had to say."""

    ledger: Ledger
    notes: tuple[Note, ...]


def record_run(
    recipe: Recipe,
    built: BuiltModel,
    optimizer: TracedOptimizer,
    *,
    recorder: Recorder | None = None,
    progress: Callable[[str], None] | None = None,
    repeat: bool = True,
) -> Recording:
    """Plays the run on meta as a GPU would run it: evaluation where it comes first, and two optimizer steps.

    Args:
        recorder: of `make_recorder`, which has seen the model being loaded; else the model appears all at once.
        repeat: take the second step's passes from the record of the first (see `Run`).
    """
    import_rules()
    recorder = recorder or make_recorder(recipe)
    context = recorder.context
    mode = CudaMode(context)
    offloading = partial(install_offloading, built.module, recipe, recorder, context.notes)
    run = Run(recipe, built, optimizer, recorder, offloading=offloading, repeat=repeat)
    with ExitStack() as stack:
        stack.enter_context(garbage_on_demand())
        stack.enter_context(recorder)
        stack.enter_context(recorder.watch(built.module))
        stack.enter_context(install_attention(context))
        stack.enter_context(install_gemma4_hybrid(built.module, recipe, context))
        stack.enter_context(install_scans(context, built.module))
        stack.enter_context(install_experts(built.module, context, recipe.model.experts_implementation))
        stack.enter_context(install_fused_kernels(built.module, recipe, context.notes))
        stack.enter_context(mode.opened())
        stack.enter_context(model_stops_told(built, recipe))
        run.record(progress or (lambda stage: None))
        ledger = recorder.make_ledger()
    return Recording(ledger, tuple(context.notes))


@contextmanager
def garbage_on_demand() -> Iterator[None]:
    """Reference cycles are collected where the recorder marks a phase and nowhere else.

    Left to itself, Python would walk the whole model again and again, and what a cycle holds would live for as long as
    chance has it.
    """
    gc.collect()
    with collector_paused():
        yield


def make_recorder(recipe: Recipe) -> Recorder:
    """One recorder for loading and training, which knows the recipe's card from the beginning: a block that the process
    takes once (cuBLAS's workspace) is taken once in the whole run. The rules are imported before it is opened."""
    recorder = Recorder()
    recorder.context = KernelContext(
        recorder=recorder,
        compute_capability=recipe.gpu.compute_capability,
        attention=recipe.attention.kernel,
        router=recipe.router,
        options={
            "batch": recipe.batch,
            "int8_outliers": recipe.quantisation.int8_outliers,
            "repeats_kv": recipe.attention.repeats_kv,
            "mean_keeps_input": recipe.kernels.mean_keeps_input,
        },
    )
    return recorder
