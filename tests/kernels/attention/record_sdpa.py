"""Writes the allocations of PyTorch's CUDA build for each call of `sdpa_calls.py` to `sdpa_on_cuda.json`.

This is not a test. It runs without a GPU, once for each card of `CARDS`: kernels do nothing, everything else is
PyTorch:

    FAKE_CUDA_MAJOR=8 FAKE_CUDA_MINOR=0 FAKE_CUDA_SMS=108 FAKE_CUDA_SHARED=166912 python scripts/cuda_without_gpu.py \
        SITE_PACKAGES CUDA_INCLUDE python tests/kernels/attention/record_sdpa.py

Bytes are as requested (`requested_bytes`), before the allocator rounds them.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from support.sdpa_calls import BACKENDS, CALLS, PACKED, Call, make_call
from torch.nn.attention.varlen import varlen_attn

HERE = Path(__file__).parent


def requested(which: str) -> int:
    return int(torch.cuda.memory_stats()[f"requested_bytes.all.{which}"])


def measure(inputs: tuple[torch.Tensor, ...], run: Any) -> dict[str, int]:
    before = requested("current")
    torch.cuda.reset_peak_memory_stats()
    out = run()
    kept, forward_peak = requested("current") - before, requested("peak") - before
    gradient = torch.empty_like(out)
    before = requested("current")
    torch.cuda.reset_peak_memory_stats()
    gradients = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
    assert len(gradients) == len(inputs)
    return {"kept": kept, "forward_peak": forward_peak, "backward_peak": requested("peak") - before}


def wait_until_free(idle: int) -> None:
    """Waits until the thread of the last backward has freed its tensors, which takes some time."""
    gc.collect()
    while requested("current") > idle:
        time.sleep(0.001)


def measure_call(call: Call, idle: int) -> dict[str, Any]:
    wait_until_free(idle)
    query, key, value, mask = make_call(call, "cuda")
    options = call.options(mask)
    choice = torch._fused_sdp_choice(query, key, value, **options)
    figures = measure((query, key, value), lambda: F.scaled_dot_product_attention(query, key, value, **options))
    return {"backend": BACKENDS[choice], **figures}


def measure_packed(tokens: int, heads: int, head_dim: int, lengths: tuple[int, ...], idle: int) -> dict[str, int]:
    wait_until_free(idle)
    shape = (tokens, heads, head_dim)
    inputs = tuple(torch.empty(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3))
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32).cuda()
    longest = max(lengths)
    return measure(inputs, lambda: varlen_attn(*inputs, bounds, bounds, longest, longest, window_size=(-1, 0)))


def main() -> None:
    """Adds this card's figures to the file."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):  # cuBLAS's workspaces of both threads
        matrix = torch.empty(4, 64, 64, dtype=dtype, device="cuda", requires_grad=True)
        (matrix @ matrix).backward(torch.empty_like(matrix))
    del matrix
    idle = requested("current")
    path = HERE / "sdpa_on_cuda.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    card = torch.cuda.get_device_properties(0)
    record[f"{card.major}.{card.minor}"] = {
        "torch": torch.__version__,
        "num_sms": card.multi_processor_count,
        "calls": [measure_call(call, idle) for call in CALLS],
        "packed": [measure_packed(*each, idle) for each in PACKED] if card.major >= 8 else [],
    }
    path.write_text(_by_lines(record), encoding="utf-8")


def _by_lines(record: dict[str, dict[str, Any]]) -> str:
    """JSON with one call on each line."""
    text = json.dumps(record)
    for before in ('{"torch"', '"calls"', '{"backend"', '"packed"', '{"kept"', '"7.5"', '"8.', '"9.', '"1'):
        text = text.replace(f" {before}", f"\n{before}")
    return text + "\n"


if __name__ == "__main__":
    main()
