"""Helpers of the probes of kernels: a recording with a GPU's rules, a site for installers, backward from a gradient
that is not recorded, and the peak of some allocations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import _disable_current_modes

from axmem_trace.kernels.install import gpu_rules
from axmem_trace.kernels.site import Site
from axmem_trace.ledger import Allocation
from axmem_trace.recipe.model import BaseModel, Model
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode

PLAIN = Recipe(name="test", model=Model(base=BaseModel(name="test", config={}, source="test")))
"""A recipe with all defaults."""


def gpu_recording(*, functions_alone: bool = False, **card: Any) -> RecordingMode:
    """A recording with the rules of a GPU's kernels.

    Args:
        functions_alone: no rules below autograd, so there are no workspaces.
        card: fields of `KernelContext`.
    """
    rules = gpu_rules()
    if functions_alone:
        rules.operators.clear()
        rules.workspaces.clear()
    return RecordingMode(KernelContext(**card), rules)


def recording_on(device: str) -> RecordingMode:
    """A recording without rules, of a run on meta or of a real run on a CPU."""
    return RecordingMode(KernelContext(recorder=Recorder(device)))


@contextmanager
def site_of(recording: RecordingMode, model: Any = None, recipe: Recipe | None = None) -> Iterator[Site]:
    """A site for installers. All changes that they make are undone at the end."""
    with ExitStack() as stack:
        yield Site(model or torch.nn.Module(), recipe or PLAIN, recording, stack)


def run_backward(out: torch.Tensor) -> None:
    """Runs backward from `out` with the engine that the active modes observe. The gradient of `out` is not recorded."""
    with _disable_current_modes():
        gradient = torch.empty_like(out)
    _engine_run_backward((out,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def peak_bytes(allocations: Sequence[Allocation], *, in_blocks: bool = False) -> int:
    """The maximum of bytes of these allocations that were alive at once, as requested or in the allocator's blocks."""
    changes = sorted(
        change
        for each in allocations
        for nbytes in (each.block_bytes if in_blocks else each.nbytes,)
        for change in ((each.allocated_tick, nbytes), (each.freed_tick, -nbytes))
    )
    return max(accumulate((nbytes for _, nbytes in changes), initial=0))
