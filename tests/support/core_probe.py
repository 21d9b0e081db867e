"""One call on meta with the rules, forward and backward, and the recorder's allocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.ledger import Allocation
from axmem_trace.tracing.cuda_mode import CudaMode
from support.kernel_recording import gpu_recording, run_backward

A100, L40S, H100, B200, RTX5090 = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def leaf(*shape: int, dtype: torch.dtype = BF16, trains: bool = True) -> torch.Tensor:
    """A leaf on meta that the recorder does not know."""
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=trains)


def record(
    run: Callable[[], torch.Tensor],
    *,
    capability: tuple[int, int] = A100,
    autocast: torch.dtype | None = None,
    rules: bool = True,
) -> tuple[Allocation, ...]:
    """The allocations of a call and of its backward, without the output's gradient."""
    recording = gpu_recording(functions_alone=not rules, compute_capability=capability)
    recorder = recording.recorder
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        with torch.autocast("cuda", dtype=autocast or BF16, enabled=autocast is not None):
            out = run()
        recorder.mark("backward", 1)
        if out.requires_grad:
            run_backward(out)
        return recorder.make_ledger().allocations


def sizes(allocations: tuple[Allocation, ...], **facts: Any) -> list[int]:
    """Bytes of the allocations with these facts, in the order in which they were allocated."""
    return [each.nbytes for each in allocations if all(getattr(each, key) == value for key, value in facts.items())]
