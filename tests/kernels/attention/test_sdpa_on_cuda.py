"""Every call of `sdpa_calls.py` on six cards, compared with the allocations of PyTorch's own CUDA build
(`record_sdpa.py`)."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_recording import gpu_recording, peak_bytes, run_backward
from support.sdpa_calls import CALLS, PACKED, make_call

from axmem_trace.kernels.attention.flash2 import run_flash2_varlen
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.cuda_mode import CudaMode

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "sdpa_on_cuda.json").read_text("utf-8"))
SEEDS = 64
"""The largest size of RNG states and scalars in bytes: less than a block of the allocator."""


@pytest.fixture(autouse=True)
def _quick_collections():
    """Makes collections fast. The recorder collects garbage at each mark; here are hundreds of marks, and all objects
    of the imported libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("card", RECORDED)
def test_the_kernel_and_its_bytes(card):
    assert len(RECORDED[card]["calls"]) == len(CALLS)
    for call, wanted in zip(CALLS, RECORDED[card]["calls"], strict=True):
        query, key, value, mask = make_call(call, "meta")
        options = call.options(mask)
        figures, context = _record(card, lambda context: F.scaled_dot_product_attention(query, key, value, **options))  # noqa: B023
        assert context.recorder.notes.of(f"attention.sdpa.{wanted['backend']}"), call
        _compare(figures, wanted, call)


@pytest.mark.parametrize("card", [card for card in RECORDED if RECORDED[card]["packed"]])
def test_packed_rows(card):
    for (*shape, lengths), wanted in zip(PACKED, RECORDED[card]["packed"], strict=True):
        heads = tuple(torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
        bounds = torch.empty(len(lengths) + 1, dtype=torch.int32, device="meta")
        figures, _ = _record(card, lambda context: run_flash2_varlen(context, heads, bounds, bounds, returns_lse=True))  # noqa: B023
        _compare(figures, wanted, shape)


def _record(card: str, run: Callable[[KernelContext], torch.Tensor]) -> tuple[dict[str, int], KernelContext]:
    """The bytes of one call and its backward, without cuBLAS's workspaces, which PyTorch had allocated before."""
    major, minor = (int(each) for each in card.split("."))
    recording = gpu_recording(compute_capability=(major, minor), num_sms=RECORDED[card]["num_sms"])
    recorder = recording.recorder
    context = recording.context
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        out = run(context)
        recorder.mark("backward", 1)
        run_backward(out)
        allocations = [each for each in recorder.make_ledger().allocations if each.op != "cuBLAS"]
    forward = [each for each in allocations if each.phase == "forward"]
    backward = [each for each in allocations if each.phase == "backward"]
    kept = sum(each.nbytes for each in forward if each.kept)
    return {
        "kept": kept,
        "forward_peak": peak_bytes(forward),
        "backward_peak": peak_bytes(backward),
    }, context


def _compare(figures: dict[str, int], wanted: dict[str, Any], what: object) -> None:
    assert figures == {name: pytest.approx(wanted[name], rel=0, abs=SEEDS) for name in figures}, what
