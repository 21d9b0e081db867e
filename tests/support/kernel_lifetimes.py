"""One kernel, forward and backward on meta, in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from axmem_trace.tracing.recording_mode import RecordingMode


@dataclass(frozen=True, slots=True)
class Lives:
    """Bytes of the tensors (not rounded to blocks), without the inputs, which existed before."""

    forward: int
    """The maximum of bytes alive in forward."""
    kept: int
    """Bytes alive between forward and backward, with the outputs."""
    backward: int
    """The maximum of bytes alive in backward. It includes the gradients of the outputs (ones), which are made there."""
    after: int
    """Bytes alive after backward: gradients of the inputs, and anything else that is not freed."""


def live(inputs: list[Any], run: Callable[..., Any]) -> Lives:
    """Runs `run(*inputs)`, which returns a tensor or a tuple of tensors, and its backward. A scalar is halved before
    backward, as a divided loss is."""
    for each in inputs:
        if isinstance(each, torch.Tensor):
            each.grad = None
    recording = RecordingMode()  # the kernel alone, without the rules for cuBLAS
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
