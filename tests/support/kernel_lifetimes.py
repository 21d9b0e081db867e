"""One kernel, forward and backward on meta, in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from axmem_trace.tracing.recording_mode import RecordingMode


@dataclass(frozen=True, slots=True)
class Lives:
    """Bytes in addition to the inputs that were there before: unrounded, as tensors have them."""

    forward: int
    """The most that was alive in forward."""
    kept: int
    """Alive between forward and backward, the outputs included."""
    backward: int
    """The most that was alive in backward; the gradients of the outputs (ones) are made in it."""
    after: int
    """Gradients of the inputs, and what else is left."""


def live(inputs: list[Any], run: Callable[..., Any]) -> Lives:
    """`run(*inputs)` gives a tensor or a tuple of them. A scalar goes backward halved, as a loss that is divided."""
    for each in inputs:
        if isinstance(each, torch.Tensor):
            each.grad = None
    recording = RecordingMode()  # the kernel alone, without what rules say of cuBLAS
    recorder = recording.recorder
    with recording:
        recorder.mark("forward", 1)
        outputs = run(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        recorder.mark("backward", 1)
        if outputs[0].ndim:
            torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])
        else:
            torch.autograd.backward(outputs[0] * 0.5)
        del outputs
        recorder.mark("optimizer", 1)
    ledger = recorder.make_ledger()
    backward, optimizer = (mark.tick for mark in ledger.marks[1:])
    levels: dict[str, int] = {}
    alive = kept = 0
    for tick, change in sorted(
        (tick, change)
        for each in ledger.on_gpu
        for tick, change in ((each.allocated_tick, each.nbytes), (each.freed_tick, -each.nbytes))
        if tick <= ledger.ticks
    ):
        alive += change
        kept = alive if tick < backward else kept
        phase = "forward" if tick < backward else "backward" if tick < optimizer else "after"
        levels[phase] = max(levels.get(phase, kept if phase == "backward" else 0), alive)
    return Lives(levels["forward"], kept, levels["backward"], alive)


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> torch.Tensor:
    """A leaf on meta."""
    return torch.empty(shape, dtype=dtype, device="meta").requires_grad_(grad and dtype.is_floating_point)


def targets(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")
