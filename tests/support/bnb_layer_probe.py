"""One linear layer of bitsandbytes on meta, forward and backward, and the bytes that the recorder saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from axmem_trace.ledger import NEVER, Allocation
from axmem_trace.models.quantisation.bnb import pack_bnb_weights
from axmem_trace.notes import Notes
from axmem_trace.tracing.cuda_mode import CudaMode
from support.kernel_recording import gpu_recording, peak_bytes, run_backward

A100 = (8, 0)


@dataclass(frozen=True)
class Probe:
    """Bytes as requested, before the allocator rounds them."""

    kept: list[int]
    """Tensors that are alive after forward, the largest first: the output, and the tensors that backward needs."""
    forward_peak: int
    backward_peak: int
    """The maximum of bytes alive at once in backward, without the tensors that forward kept."""
    notes: Notes


def make_8bit(in_features: int, out_features: int, *, bias: bool = False, threshold: float = 6.0) -> Any:
    """As transformers makes it (`integrations/bitsandbytes.py`, `replace_with_bnb_linear`), packed."""
    import bitsandbytes as bnb

    with torch.device("meta"):
        layer = bnb.nn.Linear8bitLt(in_features, out_features, bias, has_fp16_weights=False, threshold=threshold)
    pack_bnb_weights(layer, torch.bfloat16)
    return layer.requires_grad_(False)


def make_4bit(
    in_features: int,
    out_features: int,
    *,
    double_quant: bool = True,
    quant_type: str = "nf4",
    compute_dtype: torch.dtype = torch.bfloat16,
    storage: torch.dtype = torch.bfloat16,
    loaded: torch.dtype = torch.bfloat16,
) -> Any:
    import bitsandbytes as bnb

    with torch.device("meta"):
        layer = bnb.nn.Linear4bit(in_features, out_features, False, compute_dtype, double_quant, quant_type, storage)
    pack_bnb_weights(layer, loaded)
    return layer.requires_grad_(False)


def probe(
    layer: torch.nn.Module,
    *shape: int,
    dtype: torch.dtype = torch.bfloat16,
    outliers: int = 0,
    autocast: bool = False,
    capability: tuple[int, int] = A100,
) -> Probe:
    """Runs the layer on an input of that shape. The input is itself an activation: it is recorded and requires a
    gradient."""
    recording = gpu_recording(compute_capability=capability, int8_outliers=outliers)
    recorder = recording.recorder
    context = recording.context
    leaf = torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            out = layer(leaf.neg())
        recorder.mark("backward", 1)
        run_backward(out)
        ledger = recorder.make_ledger()
        del out
    return _sum_up(ledger.allocations, context.recorder.notes)


def _sum_up(allocations: tuple[Allocation, ...], notes: Notes) -> Probe:
    """Ignores cuBLAS's workspaces, which have their own rules and tests."""
    mine = [each for each in allocations if each.role != "workspace"]
    forward = [each for each in mine if each.phase == "forward"]
    backward = [each for each in mine if each.phase == "backward"]
    left = [each.op for each in backward if each.freed_tick == NEVER]
    assert left in ([], ["aten.neg.default"]), left  # only the leaf's own gradient
    return Probe(
        kept=sorted((each.nbytes for each in forward if each.kept), reverse=True),
        forward_peak=peak_bytes(forward),
        backward_peak=peak_bytes(backward),
        notes=notes,
    )
