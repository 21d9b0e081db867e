"""`F.scaled_dot_product_attention` as on CUDA: the same kernel, which keeps and allocates the same tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.attention.sdpa_choice import SdpaCall, choose_backend
from axmem_trace.kernels.attention.sdpa_math import as_additive, math_attention
from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.function(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls the operator that a CUDA card would run. Each of these operators has a meta kernel and an autograd formula.
    Without this rule, torch on meta would choose the math path and store all scores.

    Source: torch 2.13, aten/src/ATen/native/transformers/attention.cpp, `scaled_dot_product_attention`.
    """
    call = _bind(*args, **kwargs)
    if not call["query"].is_meta:
        return call_original(function, args, kwargs)
    choice = choose_backend(_describe(**call), context.compute_capability)
    _note_choice(context, choice.backend, choice.refused)
    return _KERNELS[choice.backend](**call)


def _bind(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, Any]:
    return dict(locals())


def _describe(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> SdpaCall:
    heads = (query, key, value)
    return SdpaCall(
        query=tuple(query.shape),
        key=tuple(key.shape),
        value=tuple(value.shape),
        dtypes=tuple(tensor.dtype for tensor in heads),
        mask=() if attn_mask is None else tuple(attn_mask.shape),
        mask_requires_grad=attn_mask is not None and attn_mask.requires_grad,
        dropout=dropout_p,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
        requires_grad=_trains(*heads),
        contiguous_heads=all(tensor.stride(-1) == 1 for tensor in heads),
        contiguous_mask=attn_mask is None or attn_mask.stride(-1) == 1,
        offsets=tuple(int(tensor.storage_offset()) for tensor in heads),
    )


def _trains(*tensors: torch.Tensor | None) -> bool:
    """`input_requires_grad`, `should_compute_logsumexp`."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    **_: Any,
) -> torch.Tensor:
    """Heads are padded to a multiple of 8 before the operator that autograd sees, so the padded copies are kept."""
    head_dim = query.shape[-1]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    padding = -head_dim % 8
    if padding:
        query, key, value = (F.pad(tensor, [0, padding]) for tensor in (query, key, value))
    out: torch.Tensor = aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return out[..., :head_dim] if padding else out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    **_: Any,
) -> torch.Tensor:
    attn_mask = as_additive(attn_mask, query.dtype)
    if attn_mask is not None:
        attn_mask = _aligned(attn_mask)
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out: torch.Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, _trains(query, key, value), dropout_p, is_causal, scale=scale
    )[0]
    return out


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """`preprocess_mask`: a mask is padded if its rows do not begin at multiples of 8 elements."""
    if mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return F.pad(mask, [0, 8 - length % 8])[..., :length]


def _cudnn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    **_: Any,
) -> torch.Tensor:
    attn_mask = as_additive(attn_mask, query.dtype)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], -1 if attn_mask.dim() == 4 else 1, query.shape[2], key.shape[2])
    out: torch.Tensor = aten._scaled_dot_product_cudnn_attention(
        query, key, value, attn_mask, _trains(query, key, value), dropout_p, is_causal, False, scale=scale
    )[0]
    return out


_KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "math": math_attention,
}
_KERNEL_NAMES = {
    "flash": "the FlashAttention-2 kernel",
    "efficient": "the memory-efficient kernel (CUTLASS)",
    "cudnn": "cuDNN's kernel, counted with its published workspace; the closed library may allocate more",
    "math": "the math path, which stores all scores",
}


def _note_choice(context: KernelContext, backend: str, refused: Any) -> None:
    text = f"scaled_dot_product_attention runs {_KERNEL_NAMES[backend]} on this card"
    if refused:
        text += " (" + "; ".join(f"not {name}: {reason}" for name, reason in refused.items()) + ")"
    text += ". Source: torch sdp_utils.cpp"
    context.note(Note(kind="ruled", key=f"attention.sdpa.{backend}", text=text))
