"""One attention call on meta, forward and backward, and the bytes that the recorder saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from axmem_trace.kernels.attention.install import install_attention
from axmem_trace.ledger import Allocation
from axmem_trace.notes import Notes, RefusalNote
from axmem_trace.tracing.cuda_mode import CudaMode
from support.kernel_recording import gpu_recording, peak_bytes, run_backward, site_of

A100, A6000, L40S, H100, T4 = (8, 0), (8, 6), (8, 9), (9, 0), (7, 5)


@dataclass(frozen=True)
class Probe:
    """Bytes as requested, before the allocator rounds them."""

    kept: list[int]
    """Tensors that forward keeps for backward, the largest first. They include the output."""
    forward_peak: int
    backward_peak: int
    """The maximum of bytes alive at once in backward, without the tensors that forward kept."""
    gradients: list[int]
    """Tensors that are alive after backward."""
    notes: Notes


def make_heads(*shape: int, dtype: torch.dtype = torch.bfloat16, trains: bool = True) -> torch.Tensor:
    """A leaf on meta that the recorder does not know, so only the kernel's allocations are counted."""
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=trains)


def probe(
    run: Callable[[], torch.Tensor],
    *,
    capability: tuple[int, int] = A100,
    attention: str = "sdpa",
    num_sms: int = 0,
    autocast: bool = False,
    repeats_kv: bool = False,
) -> Probe:
    """Runs a call and its backward, and summarises the record."""
    recording = gpu_recording(
        compute_capability=capability, attention=attention, num_sms=num_sms, repeats_kv=repeats_kv
    )
    recorder = recording.recorder
    with site_of(recording) as site, recording, CudaMode(recording).opened():
        install_attention(site)
        recorder.mark("forward", 1)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            out = run()
        recorder.mark("backward", 1)
        if out.requires_grad:
            run_backward(out)
        ledger = recorder.make_ledger()
        del out
    return _sum_up(ledger.allocations, recorder.notes)


def refused(notes: Notes) -> str:
    """All reasons why the kernel refuses the call."""
    return " ".join(note.text for note in notes if isinstance(note, RefusalNote))


def _sum_up(allocations: tuple[Allocation, ...], notes: Notes) -> Probe:
    forward = [each for each in allocations if each.phase == "forward"]
    backward = [each for each in allocations if each.phase == "backward"]
    left = [each.nbytes for each in backward if each.freed_tick > 1 << 60]
    return Probe(
        kept=sorted((each.nbytes for each in forward if each.kept), reverse=True),
        forward_peak=peak_bytes(forward),
        backward_peak=peak_bytes(backward),
        gradients=sorted(left, reverse=True),
        notes=notes,
    )
