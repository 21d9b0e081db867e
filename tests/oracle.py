"""The CPU oracle's two halves: the same step on meta and for real, and what is compared of their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe import read_recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.record import garbage_on_demand
from axmem_trace.training.step import Run

ASSUMPTIONS = ["autocast=false", "adapter_dtype=base", "optimizer_implementation=foreach"]
"""All in one dtype, so that a CPU can run it without autocast; transformers still computes softmax, norms and loss in
fp32."""


def record_step(
    config: dict[str, Any],
    device: str,
    *,
    prepare: Callable[[Recorder, BuiltModel], None] = lambda recorder, built: None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Ledger:
    """Two steps on the device, with no rule for any GPU kernel.

    Args:
        prepare: called with the recorder before it is opened.
        within: a context around the run.
    """
    recipe = read_recipe(config, hub="never", assumptions=ASSUMPTIONS)
    recipe = replace(recipe, precision=replace(recipe.precision, upcast_before=False))
    built = build_model(recipe, device=device)
    recorder = Recorder(traced_device=device, with_rules=False)
    prepare(recorder, built)
    run = Run(recipe, built, build_optimizer(recipe, built.module), recorder)
    with garbage_on_demand(), recorder, recorder.watch(built.module), within():
        run.record()
    return recorder.make_ledger()


def describe(ledger: Ledger, leave_out: Callable[[Allocation], bool] = lambda each: False) -> Counter[Any]:
    """All allocations of loading, forward and backward as a multiset of everything but time.

    The optimizer's own tests compare its step with a real one: here its counters, which live on the host, cannot be
    told from what stands for the GPU.
    """
    return Counter(
        (each.nbytes, each.phase, each.module, each.op, each.role, each.recomputed, each.kept, each.output)
        for each in ledger.allocations
        if each.step <= 1 and each.phase != "optimizer" and not leave_out(each)
    )
