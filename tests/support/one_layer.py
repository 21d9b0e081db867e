"""One layer with half-precision inputs on meta, under a recorder with all rules: the bytes that stay alive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from axmem_trace.ledger import Ledger
from support.kernel_recording import gpu_recording


@dataclass(frozen=True, slots=True)
class LayerRun:
    """The record with cuBLAS's workspaces, and the tick at the end of forward."""

    ledger: Ledger
    workspace: int
    forward: int

    @property
    def kept(self) -> int:
        """Bytes alive after forward, with the output and without the workspaces."""
        return self.ledger.allocated_at(self.forward) - self.workspace


def run_layer(
    layer: nn.Module,
    tokens: int,
    width: int,
    out_width: int,
    *,
    backward: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> LayerRun:
    """Runs forward from inputs [1, tokens, width] that require gradients to [1, tokens, out_width], and then
    backward."""
    inputs = torch.empty(1, tokens, width, device="meta", dtype=dtype, requires_grad=True)
    recording = gpu_recording()
    recorder = recording.recorder
    with recording:
        output = layer(inputs)
        forward = recorder.now
        if backward:
            recorder.mark("backward", 1)
            output.backward(torch.empty_like(output))
    assert output.shape == (1, tokens, out_width)
    ledger = recorder.make_ledger()
    return LayerRun(ledger, sum(each.nbytes for each in ledger.allocations if each.op == "cuBLAS"), forward)
