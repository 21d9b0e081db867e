"""SDPA's math path with dropout, which CUDA does by a kernel that keeps a mask of bytes."""

from __future__ import annotations

import math

import torch

aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)


def math_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None, dropout_p: float,
    is_causal: bool, scale: float | None, enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """What torch's operator does, step by step.

    The operator itself is made of others below Python, and on meta its `at::dropout` keeps noise of four bytes an
    element. Without dropout it is called as it is: see `sdpa.py`.

    Source: torch 2.13, aten/src/ATen/native/transformers/attention.cpp, `_scaled_dot_product_attention_math`; half
    precision is computed in fp32 unless `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp` was called.
    """
    dtype = query.dtype
    if dtype in _HALF and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        query, key, value = query.float(), key.float(), value.float()
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else abs(scale))
    query = query * (-root if scale is not None and scale < 0 else root)
    if is_causal:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        attn_mask = torch.where(allowed, 0.0, torch.scalar_tensor(-math.inf, dtype=query.dtype, device=query.device))
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = torch.matmul(query, key.transpose(-2, -1) * root)
    if attn_mask is not None:
        scores = scores.add_(attn_mask)
    weights = aten.native_dropout(aten._safe_softmax(scores, -1), dropout_p, True)[0]
    return torch.matmul(weights, value).to(dtype)
