"""The recorded allocations of backward on meta equal those of a CPU without a recorder.

They are compared with torch's profiler around a run without any mode. The profiler hooks into the allocator, so it
changes no path of autograd. The CPU kernels of the operators here allocate only their results.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_recording import gpu_recording
from torch.autograd.graph import _engine_run_backward
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from axmem_trace.kernels.core import autograd_in_place
from axmem_trace.tracing.cuda_mode import CudaMode
from axmem_trace.tracing.recording_mode import RecordingMode

LARGE = 4096
"""Smaller blocks are temporary blocks of CPU kernels."""
CASES = {
    "residual": lambda x, i: _residual(x * 1),
    "three uses": lambda x, i: x.exp() + x.sin() + x.cos(),
    "rotation": lambda x, i: torch.cat((-x[..., 64:], x[..., :64]), -1) * x,
    "views of one": lambda x, i: x.view(-1).exp() + x.view(-1).sin(),
    "the same twice": lambda x, i: x + x,
    "held by its own gradient": lambda x, i: (x + x.exp()) + x,
    "chunks": lambda x, i: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "index": lambda x, i: x[i],
    "index twice": lambda x, i: x[i] + x[i].exp(),
    "index_select": lambda x, i: x.index_select(0, i),
    "gather": lambda x, i: x.gather(0, i[:, None].expand(64, 128)),
    "topk": lambda x, i: x.topk(32, -1)[0],
    "largest": lambda x, i: x.max(-1)[0],
    "normalize": lambda x, i: F.normalize(x, dim=-1),
    "softmax": lambda x, i: x.softmax(-1) * x.log_softmax(-1),
    "layer norm": lambda x, i: F.layer_norm(x, (128,)) + x,
    "embedding": lambda x, i: F.embedding(i, x),
    "masked_fill, where": lambda x, i: x.masked_fill(x > 0.5, 0.0) + torch.where(x > 0.5, x, 0.0),
    "pad, repeat": lambda x, i: F.pad(x, (0, 8)).repeat_interleave(2, 0),
    "powers": lambda x, i: x.pow(2) * x.rsqrt() + x.sqrt(),
    "linear with a bias": lambda x, i: F.linear(x.view(8, 8, 128), x[:32], x[0, :32]),
    "linear of a transposed input": lambda x, i: F.linear(x.view(8, 8, 128).transpose(0, 1), x[:32], x[0, :32]),
    "activations": lambda x, i: F.gelu(x) + F.softplus(x) + F.gelu(x, approximate="tanh"),
    "checkpointed, reentrant": lambda x, i: _checkpoint(x * 1, True) + x,
    "checkpointed, not reentrant": lambda x, i: _checkpoint(x * 1, False) + x,
}  # fmt: skip
ON_CUDA_ALONE = {"softmax": Counter({64 * 128 * 4: 1})}
"""Additional allocations of CUDA kernels: softmax's backward makes the product of gradient and output."""


def _residual(x: torch.Tensor) -> torch.Tensor:
    return x + F.silu(x)


def _checkpoint(x: torch.Tensor, use_reentrant: bool) -> Any:
    return checkpoint(_branches, x, use_reentrant=use_reentrant, preserve_rng_state=False)


def _branches(x: torch.Tensor) -> torch.Tensor:
    return x.exp() * 3 + x.sin() + x


@pytest.mark.parametrize("name", CASES)
def test_meta_allocates_the_same_as_a_cpu_without_a_mode(name: str) -> None:
    run = CASES[name]
    assert record_meta(run) == profile_cpu(run) + ON_CUDA_ALONE.get(name, Counter())


@pytest.mark.parametrize("name", ["three uses", "index", "gather", "checkpointed, reentrant"])
def test_the_rules_are_needed(name: str) -> None:
    run = CASES[name]
    assert sum(record_meta(run, with_rules=False).values()) > sum(profile_cpu(run).values())


def profile_cpu(run: Any) -> Counter[int]:
    """Sizes of the blocks that forward and backward allocate."""
    x, index = torch.rand(64, 128).add(0.1).requires_grad_(), torch.arange(64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = run(x, index)
        out.backward(torch.ones_like(out))
        del out
    events = profiler.profiler.kineto_results.events()
    return Counter(each.nbytes() for each in events if each.name() == "[memory]" and each.nbytes() >= LARGE)


def record_meta(run: Any, *, with_rules: bool = True) -> Counter[int]:
    recording = gpu_recording(functions_alone=not with_rules)
    recorder = recording.recorder
    x = torch.empty(64, 128, device="meta", requires_grad=True)
    index = torch.empty(64, device="meta", dtype=torch.int64)
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        out = run(x, index)
        gradient = torch.ones_like(out)
        recorder.mark("backward", 1)
        _engine_run_backward((out,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        del out, gradient
        allocations = recorder.make_ledger().allocations
    return Counter(each.nbytes for each in allocations if each.nbytes >= LARGE and each.op != "cuBLAS")


@pytest.mark.parametrize(("name", "value"), [("_OWN_CODE", frozenset()), ("_REFERENCES_OF_BUFFER", (0, 0))])
def test_a_trace_begins_with_a_check_that_fails(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Another frame between the engine and the rule, or another reference count, would change figures silently."""
    autograd_in_place.assert_seen_from_engine()
    monkeypatch.setattr(autograd_in_place, name, value)
    with pytest.raises(AssertionError, match="no longer added up in place"):
        autograd_in_place.assert_seen_from_engine()


@pytest.mark.parametrize("name", ["_record", "__torch_dispatch__"])
def test_a_wrapper_around_the_recording_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Its frame is between autograd's engine and the rule, so each sum of gradients would be a new tensor."""
    original = getattr(RecordingMode, name)
    monkeypatch.setattr(RecordingMode, name, lambda *args, **kwargs: original(*args, **kwargs))
    with pytest.raises(AssertionError, match="no longer added up in place"):
        autograd_in_place.assert_seen_from_engine()
