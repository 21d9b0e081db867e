"""SDPA's math path, and the additive masks that every kernel of SDPA computes from boolean masks."""

from __future__ import annotations

import math

import torch

from axmem_trace.kernels.card import HALF

aten = torch.ops.aten


def as_additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """`convert_boolean_attn_mask` (attention.cpp): every call computes its own additive copy of a boolean mask."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-math.inf, dtype=dtype, device=mask.device))


def math_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """The steps of torch's operator.

    The operator itself calls other operators in C++. Under a dispatch mode it adds the mask out of place, but a GPU adds it
    in place. On meta its `at::dropout` keeps noise of four bytes per element instead of a mask of one byte.

    Source: torch 2.13, aten/src/ATen/native/transformers/attention.cpp, `_scaled_dot_product_attention_math`; half
    precision is computed in fp32 unless `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp` was called.
    """
    dtype, root = query.dtype, math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else abs(scale))
    attn_mask = as_additive(attn_mask, dtype)
    if dtype in HALF and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        query, key, value = query.float(), key.float(), value.float()  # alive until the end, as in the operator
    scaled = query * (-root if scale is not None and scale < 0 else root)
    if is_causal:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        attn_mask = as_additive(allowed, query.dtype)
        del allowed
    keys, values = (_repeated(each, query.shape[-3], enable_gqa) for each in (key, value))
    weights = torch.matmul(scaled, keys.transpose(-2, -1) * root)
    if attn_mask is not None:
        weights = weights.add_(attn_mask)
    weights = aten._safe_softmax(weights, -1)
    if dropout_p:
        weights = aten.native_dropout(weights, dropout_p, True)[0]
    second = weights.to(dtype)  # noqa: F841  (the operator's second result, which is not used)
    return torch.matmul(weights, values).to(dtype)


def _repeated(tensor: torch.Tensor, heads: int, enable_gqa: bool) -> torch.Tensor:
    """`pre_process_group_query_attention_input`."""
    groups = heads // tensor.shape[-3] if enable_gqa else 1
    return tensor if groups == 1 else tensor.repeat_interleave(groups, -3)
