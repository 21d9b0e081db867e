"""One note for each attention kernel that ran: a rule calculates its memory, and the note names the rule's source."""

from __future__ import annotations

import torch

from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext

_SOURCES = {
    "flash_attn": "FlashAttention-2: keeps query, key, value, output and an fp32 logsumexp; backward accumulates dq in "
    "fp32, and for grouped queries allocates dk, dv per query head (flash-attn 2.8.3, csrc/flash_attn/flash_api.cpp)",
    "varlen_attn": "torch's varlen_attn: as FlashAttention-2 (torch/nn/attention/varlen.py)",
    "flash_attn_3": "FlashAttention-3: as FlashAttention-2, but dk, dv of grouped queries are accumulated in fp32 per key "
    "head (flash-attention, hopper/flash_api.cpp)",
    "flash_attn_4": "FlashAttention-4: as FlashAttention-3 (flash-attn-4 4.0.0b36, flash_attn/cute/interface.py)",
    "xformers": "xformers: FlashAttention-2, which it dispatches to, or else torch's CUTLASS kernel, with keys and values "
    "repeated for grouped queries (xformers 0.0.35, ops/fmha/dispatch.py; axolotl monkeypatch/attention/xformers.py)",
    "flex_attention": "flex attention, compiled: keeps query, key, value, output and an fp32 logsumexp; the mask is "
    "stored only in blocks of 128 (torch/_inductor/kernel/flex/flex_attention.py)",
    "sage": "SageAttention: int8 copies of query and key while it runs; it keeps nothing (SageAttention 2, core.py)",
}


_SINKS = (
    "this kernel, as axolotl calls it, ignores the model's attention sinks: they get no gradient, and the model computes "
    "something else than the pretrained model"
)


def note_lost_sinks(context: KernelContext, sinks: torch.Tensor | None) -> None:
    """For functions that accept unknown arguments (`s_aux` of gpt-oss) and ignore them."""
    if sinks is not None:
        context.note(Note(kind="warning", key="attn_implementation.sinks", text=_SINKS))


def note_source(context: KernelContext, kernel: str) -> None:
    """Adds the kernel's note."""
    context.note(Note(kind="ruled", key=f"attention.{kernel}", text=_SOURCES[kernel]))
