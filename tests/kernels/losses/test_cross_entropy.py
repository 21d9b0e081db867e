"""The default loss in bytes for each token and vocabulary entry, with all rules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.core_probe import leaf
from support.kernel_recording import gpu_recording
from torch.autograd.graph import _engine_run_backward

from axmem_trace.tracing.cuda_mode import CudaMode
from axmem_trace.tracing.recorder import Recorder

TOKENS, VOCABULARY = 256, 1000
UNIT = TOKENS * VOCABULARY
SMALL = UNIT // 100
"""The size of labels, losses and the workspace of the loss's sum."""


def test_logits_in_bf16_copied_to_fp32_in_the_loss_and_for_the_caller() -> None:
    # transformers 5, `ForCausalLMLoss`: logits 2 B, `.float()` 4, log-softmax 4: 10 at most. accelerate's fp32 outputs:
    # 4, with logits 2 and log-softmax 4 (the fp32 logits are freed): 10 again. The conversion frees the bf16 logits: 8.
    # The outputs are freed: 4 B. Backward: 4 B for the gradient of the log-softmax, 4 for that of the fp32 logits: 12
    recording = gpu_recording()
    recorder = recording.recorder
    hidden, labels = leaf(TOKENS, VOCABULARY), leaf(TOKENS, dtype=torch.int64, trains=False)
    peaks: dict[str, float] = {}
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        logits = hidden * 2
        loss = F.cross_entropy(logits.float(), labels)
        peaks["forward"] = _peak(recorder, since=0)
        logits = logits.float()
        peaks["with fp32 outputs"] = _live(recorder)
        del logits
        peaks["outputs released"] = _live(recorder)
        recorder.mark("backward", 1)
        start, gradient = recorder.now, torch.ones_like(loss)
        _engine_run_backward((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        peaks["backward"] = _peak(recorder, since=start)
    assert {name: round(peak) for name, peak in peaks.items()} == {
        "forward": 10,
        "with fp32 outputs": 8,
        "outputs released": 4,
        "backward": 12,
    }
    assert all(abs(peak - round(peak)) < SMALL / UNIT for peak in peaks.values())


def _live(recorder: Recorder) -> float:
    ticks, levels = recorder.make_ledger().levels
    return levels[-1] / UNIT if ticks else 0.0


def _peak(recorder: Recorder, *, since: int) -> float:
    ticks, levels = recorder.make_ledger().levels
    return max(level for tick, level in zip(ticks, levels, strict=True) if tick >= since) / UNIT
