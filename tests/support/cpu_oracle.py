"""The two halves of the CPU oracle: the same step on meta and on real tensors, and the comparison of their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from axmem_trace.config import read_recipe
from axmem_trace.kernels.experts.eager_loop import scattered_one_hot
from axmem_trace.kernels.experts.install import count_experts
from axmem_trace.kernels.experts.routing import Routing, find_tables
from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.reference import build_reference
from axmem_trace.models.reward_models import build_reward_models, copy_policy
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.objectives import Objective, choose_objective
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.run import Run
from axmem_trace.training.trace import garbage_on_demand
from support.kernel_recording import recording_on

ASSUMPTIONS = ["autocast=false", "adapter_dtype=base", "optimizer_implementation=foreach"]
"""Everything is in one dtype, so that a CPU can run it without autocast. transformers still computes softmax, norms and
loss in fp32."""


def record_step(
    config: dict[str, Any],
    device: str,
    *,
    prepare: Callable[[RecordingMode, BuiltModel], None] = lambda recording, built: None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    assumptions: Sequence[str] = (),
    change_objective: Callable[[Objective, BuiltModel], Objective] = lambda objective, built: objective,
) -> Ledger:
    """Records two steps on the device, without rules for GPU kernels.

    Args:
        prepare: called with the recording before it is opened.
        within: a context around the run.
        assumptions: further assumptions.
        change_objective: makes another objective from the recipe's objective.
    """
    recipe = read_recipe(config, hub="never", assumptions=[*ASSUMPTIONS, *assumptions])
    recipe = replace(recipe, precision=replace(recipe.precision, upcast_before=False))
    built = build_model(recipe, device=device)
    built = replace(
        built,
        reference=build_reference(recipe, device=device),
        reward_models=build_reward_models(recipe, device=device),
        feature_network=copy_policy(recipe, built.module),
    )
    recording = recording_on(device)
    recorder = recording.recorder
    prepare(recording, built)
    objective = change_objective(choose_objective(recipe, built, recorder), built)
    run = Run(recipe, built, build_optimizer(recipe, built.module), recorder, objective=objective)
    with garbage_on_demand(), autocast_off_on_meta(), recording, recorder.watch(built.module), within():
        run.record()
    return recorder.make_ledger()


@contextmanager
def autocast_off_on_meta() -> Iterator[None]:
    """Libraries may disable autocast for a tensor's device (peft 0.21 does). torch has no autocast for "meta"."""
    init = torch.autocast.__init__

    def init_on_meta(autocast: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(autocast, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    with patch.object(torch.autocast, "__init__", init_on_meta):
        yield


def all_but_time(each: Allocation) -> tuple[Any, ...]:
    """The facts that two records of the same allocation have in common."""
    return each.nbytes, each.phase, each.module, each.op, each.role, each.recomputed, each.kept, each.output


def describe(ledger: Ledger, leave_out: Callable[[Allocation], bool] = lambda each: False) -> Counter[Any]:
    """All allocations of loading, forward and backward, as a multiset of all facts except time.

    The optimizer is left out: its counters are on the host, and on a CPU they cannot be distinguished from tensors of
    the GPU. The optimizer's own tests compare its step with a real one.
    """
    return Counter(
        all_but_time(each)
        for each in ledger.allocations
        if each.step <= 1 and each.phase != "optimizer" and not leave_out(each)
    )


class HostCopies:
    """Copies from host memory to the device. A run on meta makes them. A run on a CPU does not, because both are the
    same memory."""

    def __init__(self) -> None:
        self.ticks: set[int] = set()

    def attach(self, recording: RecordingMode) -> None:
        """Observes the recording's copies from now on."""
        recording.decide(self._see, torch.ops.aten._to_copy.default)

    def _see(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if args[0].device.type == "cpu" and result.is_meta:
            self.ticks.add(recorder.allocation_tick(result))


def differences(on_meta: Ledger, for_real: Ledger, copies: HostCopies) -> tuple[Counter[Any], Counter[Any]]:
    """Allocations that only one of the two records has, without those that differ because a CPU's host memory is its
    device memory.

    Single numbers are ignored, because they may be on the host or on the device. Copies from the host are ignored,
    because a CPU does not make them. A tensor made on the host may then be alive longer on the CPU, where it is used in
    place of the copy.
    """
    meta, real = (describe(each, _is_number) for each in (on_meta, for_real))
    only_meta, only_real = meta - real, real - meta
    for each in on_meta.allocations:
        made = (each.nbytes, each.phase, each.module, each.op)
        found = _find(only_meta, made)
        if found and each.allocated_tick in copies.ticks:
            only_meta[found] -= 1
        elif found and each.device == "cpu" and (twin := _find(only_real, made)):
            only_meta[found] -= 1
            only_real[twin] -= 1
    return +only_meta, +only_real


def _is_number(each: Allocation) -> bool:
    return each.nbytes <= 8


def _find(counter: Counter[Any], made: tuple[Any, ...]) -> Any:
    return next((key for key, count in counter.items() if count > 0 and key[:4] == made), None)


def route(recording: RecordingMode, built: BuiltModel, router: Any = "balanced") -> None:
    """Makes both halves route tokens in the same way. It is a `prepare` for `record_step`."""
    Routing(count_experts(built.module), router, tables=find_tables(built.module)).attach(recording)


class OneHotAsOnCuda(TorchFunctionMode):
    """`one_hot` as on CUDA, on meta and on a CPU, both of which have other implementations."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.one_hot:
            return scattered_one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def one_hot_as_on_cuda() -> Iterator[None]:
    """Activates the mode, also during recomputation (as `CudaMode` does). It is a `within` for `record_step`."""
    run_backward = torch.autograd._engine_run_backward

    def run_backward_in_mode(*args: Any, **kwargs: Any) -> Any:
        with OneHotAsOnCuda():
            return run_backward(*args, **kwargs)

    with patch.object(torch.autograd, "_engine_run_backward", run_backward_in_mode), OneHotAsOnCuda():
        yield
