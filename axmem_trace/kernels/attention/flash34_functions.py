"""The functions of FlashAttention-3's and FlashAttention-4's packages, with the same parameters as in the packages.

transformers reads from the parameters what a function supports (`modeling_flash_attention_utils.py`). `flash34.py` has the
memory of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.attention.flash34 import FLASH3, FLASH4, Window, run_fixed, run_varlen
from axmem_trace.kernels.attention.sources import note_source
from axmem_trace.tracing.context import KernelContext


def make_flash3(context: KernelContext) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`flash_attn_func` and `flash_attn_varlen_func` of FlashAttention-3."""

    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        qv: torch.Tensor | None = None,
        window_size: Window = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        sm_margin: int = 0,
        s_aux: torch.Tensor | None = None,
    ) -> torch.Tensor:
        note_source(context, FLASH3.operator)
        return run_fixed(FLASH3, context, (q, k, v), causal=causal, window=window_size, sink=s_aux, softcap=softcap)

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: Any,
        max_seqlen_k: Any,
        seqused_q: torch.Tensor | None = None,
        seqused_k: torch.Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        qv: torch.Tensor | None = None,
        window_size: Window = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        sm_margin: int = 0,
        s_aux: torch.Tensor | None = None,
    ) -> torch.Tensor:
        bounds = (cu_seqlens_q, cu_seqlens_k)
        note_source(context, FLASH3.operator)
        return run_varlen(
            FLASH3,
            context,
            (q, k, v),
            bounds,
            max_seqlen_q,
            causal=causal,
            window=window_size,
            sink=s_aux,
            softcap=softcap,
        )

    return flash_attn_func, flash_attn_varlen_func


def make_flash4(context: KernelContext) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`flash_attn_func` and `flash_attn_varlen_func` of FlashAttention-4 (`flash_attn.cute`)."""

    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (None, None),
        learnable_sink: torch.Tensor | None = None,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        note_source(context, FLASH4.operator)
        return run_fixed(
            FLASH4, context, (q, k, v), causal=causal, window=window_size, sink=learnable_sink, softcap=softcap
        )

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: Any = None,
        max_seqlen_k: Any = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (None, None),
        learnable_sink: torch.Tensor | None = None,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        bounds = (cu_seqlens_q, cu_seqlens_k)
        note_source(context, FLASH4.operator)
        return run_varlen(
            FLASH4,
            context,
            (q, k, v),
            bounds,
            max_seqlen_q,
            causal=causal,
            window=window_size,
            sink=learnable_sink,
            softcap=softcap,
        )

    return flash_attn_func, flash_attn_varlen_func
