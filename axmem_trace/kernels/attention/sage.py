"""SageAttention, as axolotl calls it: int8 scores, forward only.

Source: axolotl 0.19, monkeypatch/attention/sage_attn.py; SageAttention 2 (thu-ml/SageAttention), sageattention/core.py
(`sageattn`, `sageattn_varlen`) and quant.py. The kernel has no backward. Its output requires no gradient, so nothing is
kept, and the projections of query, key and value get no gradient through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.kernels.attention.fused import Heads
from axmem_trace.kernels.attention.refuse_call import note_refusal
from axmem_trace.kernels.attention.sources import note_lost_sinks, note_source
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.tracing.context import KernelContext

_HEAD_DIMS = (64, 96, 128)
_BLOCK = 64
_NO_BACKWARD = Note(
    kind="warning",
    key="attn_implementation",
    text="SageAttention has no backward kernel: its output has no gradient, so q, k and v projections (and "
    "adapters on them) are not trained through attention",
)
_PACKED = RefusalNote(
    key="attn_implementation",
    text="the run fails: axolotl's packed SageAttention imports `prepare_fa2_from_position_ids`, which transformers 5 no "
    "longer has (the figures are as if it existed)",
    remedy="set `attn_implementation: flash_attention_2`",
)
_PADDED = RefusalNote(
    key="attn_implementation",
    text="the run fails: for a padded batch, axolotl's SageAttention calls `_upad_input` of transformers 5 without its last "
    "argument (the figures are as if the batch was unpadded)",
    remedy="set `attn_implementation: flash_attention_2`",
)


def make_sage(context: KernelContext) -> Callable[..., tuple[torch.Tensor, None]]:
    """The attention function. Input heads are (B, H, S, D); the output is (B, S, H, D)."""

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        from transformers.integrations.sdpa_attention import repeat_kv

        _refuse_call(context, query, value, dropout)
        note_source(context, "sage")
        note_lost_sinks(context, kwargs.get("s_aux"))
        context.note(_NO_BACKWARD)
        groups = getattr(module, "num_key_value_groups", 1)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        positions = kwargs.get("position_ids")
        if positions is not None and not bool((torch.diff(positions, dim=-1) >= 0).all()):
            context.note(_PACKED)
            return _run_packed(context, (query, key, value)), None
        if attention_mask is not None:
            return _run_unpadded(context, (query, key, value), attention_mask), None
        out = _run_kernel(context, (query, key, value), smooths_keys=True)
        return out.transpose(1, 2).contiguous(), None

    return forward


def _refuse_call(context: KernelContext, query: torch.Tensor, value: torch.Tensor, dropout: float) -> None:
    remedy = "use `attn_implementation: sdpa`"
    if query.shape[-1] != value.shape[-1]:
        problem = f"SageAttention needs equal head sizes; this model's are {query.shape[-1]} and {value.shape[-1]}"
        raise ConfigError(problem, key="attn_implementation", value="sage", remedy=remedy)
    if query.shape[-1] > max(_HEAD_DIMS):
        problem = f"SageAttention supports head sizes of at most {max(_HEAD_DIMS)}; this model's is {query.shape[-1]}"
        note_refusal(context, problem, remedy)
    if dropout:
        problem = "SageAttention does not support dropout; this model's configuration sets `attention_dropout`"
        note_refusal(context, problem, remedy)


def _run_packed(context: KernelContext, heads: Heads) -> torch.Tensor:
    batch, num_heads, _, head_dim = heads[0].shape
    flat = tuple(each.transpose(1, 2).contiguous().view(-1, num_heads, head_dim) for each in heads)
    out = _run_kernel(context, (flat[0], flat[1], flat[2]), smooths_keys=False)
    return out.view(batch, -1, num_heads, head_dim)


def _run_unpadded(context: KernelContext, heads: Heads, mask: torch.Tensor) -> torch.Tensor:
    from transformers import modeling_flash_attention_utils as flash_utils

    context.note(_PADDED)
    batch, _, tokens, _ = heads[0].shape
    rows = [each.transpose(1, 2) for each in heads]
    query, key, value, indices, _, _ = flash_utils._upad_input(*rows, mask, tokens, flash_utils._unpad_input)
    out = _run_kernel(context, (query, key, value), smooths_keys=True)
    padded: torch.Tensor = flash_utils._pad_input(out, indices, batch, tokens)
    return padded


@torch.no_grad()
def _run_kernel(context: KernelContext, heads: Heads, *, smooths_keys: bool) -> torch.Tensor:
    """Allocates int8 query and key with one fp32 scale for 64 rows, and the value in fp16 (fp8 from compute capability
    8.9)."""
    query, key, value = heads
    key = key - key.mean(dim=-2, keepdim=True) if smooths_keys else key
    out = torch.empty_like(query)
    value_bytes = 1 if context.compute_capability >= (8, 9) else 2
    scales = 4 * ((query.numel() + key.numel()) // (query.shape[-1] * _BLOCK))
    sizes = [query.numel(), key.numel(), value.numel() * value_bytes, scales]
    context.recorder.workspace(sizes, "sageattn")
    return out
