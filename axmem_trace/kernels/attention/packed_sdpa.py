"""axolotl's packed SDPA, here called `varlen`: torch's variable-length kernel under the name `sdpa`.

Source: axolotl 0.19, monkeypatch/attention/sdpa_varlen.py, and torch 2.13, torch/nn/attention/varlen.py
(`_varlen_attn`, whose backward calls torch's copy of FlashAttention-2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.attention.flash2 import run_flash2_varlen
from axmem_trace.kernels.attention.sources import note_source
from axmem_trace.kernels.card import HALF
from axmem_trace.tracing.context import KernelContext

_MAX_HEAD_DIM = 256
NAME = "torch's varlen_attn"


def make_packed_sdpa(context: KernelContext) -> Callable[..., tuple[torch.Tensor, None]]:
    """The attention function: it runs the varlen kernel for packed rows that the kernel supports, else plain SDPA."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        positions = kwargs.get("position_ids")
        if positions is not None and _is_packed(rows := _rows(positions)):
            same_heads = query.shape[-1] == value.shape[-1]
            if same_heads and _can_serve(query, attention_mask, dropout, scaling):
                return _run_varlen(context, (query, key, value), rows), None
            if attention_mask is None:
                attention_mask = _block_diagonal(rows)
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain

    return forward


def packed_sdpa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask if the batch has none: the bounds of the samples replace it."""
    from transformers.masking_utils import sdpa_mask

    return None if kwargs.get("attention_mask") is None else sdpa_mask(*args, **kwargs)


def _rows(positions: torch.Tensor) -> torch.Tensor:
    return positions if positions.dim() > 1 else positions[None]


def _is_packed(positions: torch.Tensor) -> bool:
    """True if there are more samples than rows."""
    return int((positions == 0).sum()) > positions.shape[0]


def _can_serve(query: torch.Tensor, mask: torch.Tensor | None, dropout: float, scaling: float | None) -> bool:
    head_dim = query.shape[-1]
    usual_scale = scaling is None or abs(scaling - head_dim**-0.5) < 1e-9
    half = query.dtype in HALF
    return mask is None and not dropout and usual_scale and half and head_dim <= _MAX_HEAD_DIM


def _run_varlen(
    context: KernelContext, heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor], positions: torch.Tensor
) -> torch.Tensor:
    """Input heads are (B, H, S, D); key and value are repeated for grouped queries. The output is (B, S, H, D)."""
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    note_source(context, "varlen_attn")
    query, key, value = heads
    batch, num_heads, tokens, head_dim = query.shape
    groups = num_heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    (bounds_q, bounds_k), _ = prepare_fa_kwargs_from_position_ids(positions)
    flat = tuple(each.transpose(1, 2).reshape(batch * tokens, num_heads, head_dim) for each in (query, key, value))
    out = run_flash2_varlen(
        context, (flat[0], flat[1], flat[2]), bounds_q, bounds_k, name=NAME, pads=False, returns_lse=True
    )
    return out.reshape(batch, tokens, num_heads, head_dim)


def _block_diagonal(positions: torch.Tensor) -> torch.Tensor:
    """A mask (B, 1, S, S), True where a token may attend: to earlier tokens of its own sample."""
    sample = (positions == 0).cumsum(-1)
    index = torch.arange(positions.shape[-1], device=positions.device)
    same_sample = sample[:, :, None] == sample[:, None, :]
    return (same_sample & (index[:, None] >= index[None, :])[None])[:, None]
