"""One call of a scan on meta, forward and backward, and the bytes that the recorder saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from axmem_trace.tracing.cuda_mode import CudaMode
from support.kernel_recording import gpu_recording, peak_bytes, run_backward


@dataclass(frozen=True)
class Probe:
    """Bytes as requested, before the allocator rounds them. Leaves are not among them."""

    kept: list[int]
    """Tensors that forward keeps for backward, the largest first. They include the output."""
    forward_peak: int
    backward_peak: int
    """The maximum of bytes alive at once in backward, without the tensors that forward kept."""


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """An input that trains."""
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)


def leaf32(*shape: int) -> torch.Tensor:
    """The same in fp32."""
    return leaf(*shape, dtype=torch.float32)


def probe(run: Callable[[], torch.Tensor]) -> Probe:
    """Runs a call and its backward, and summarises the record."""
    recording = gpu_recording(functions_alone=True)
    recorder = recording.recorder
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        out = run()
        recorder.mark("backward", 1)
        run_backward(out)
        ledger = recorder.make_ledger()
        del out
    forward = [each for each in ledger.allocations if each.phase == "forward"]
    backward = [each for each in ledger.allocations if each.phase == "backward"]
    kept = sorted((each.nbytes for each in forward if each.kept), reverse=True)
    return Probe(kept, peak_bytes(forward), peak_bytes(backward))
