"""Temporary memory of the kernels of `scaled_dot_product_attention`, and corrections of the meta kernels' outputs."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.attention import efficient_sizes, flash_sizes
from axmem_trace.kernels.attention.flash_sizes import Blocks
from axmem_trace.kernels.card import HALF, num_sms
from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.workspace(aten._scaled_dot_product_flash_attention.default)
def flash_forward(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Blocks:
    """Partial results of split keys, if there are too few queries for the card. Source: flash_api.cpp,
    `set_params_splitkv`."""
    batch, heads, queries, head_dim = args[0].shape
    dropout = args[3] if len(args) > 3 else kwargs.get("dropout_p", 0.0)
    if dropout:
        return ()
    splits = flash_sizes.num_splits(
        batch=batch, heads=heads, queries=queries, keys=args[1].shape[2], head_dim=head_dim, num_sms=num_sms(context)
    )
    return flash_sizes.split_scratch(splits=splits, batch=batch, heads=heads, queries=queries, head_dim=head_dim)


@RULES.workspace(aten._scaled_dot_product_flash_attention_backward.default)
def flash_backward(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Blocks:
    """torch's copy of FlashAttention-2. It needs the output and its gradient contiguous in (B, S, H, D).

    Source: flash_api.cpp, `mha_bwd`; attention_backward.cu, `_flash_attention_backward`: `grad_out.contiguous()`,
    `out.contiguous()`.
    """
    query, key = args[1], args[2]
    batch, heads, queries, head_dim = query.shape
    splits = 1
    if torch.are_deterministic_algorithms_enabled():
        splits = flash_sizes.deterministic_splits(num_sms(context), batch, heads)
    blocks = flash_sizes.flash2_backward(
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        head_dim=head_dim,
        itemsize=query.element_size(),
        deterministic_splits=splits,
    )
    gaps = [each for each in (args[0], args[4]) if not each.transpose(1, 2).is_contiguous()]
    return (*blocks, *(each.numel() * each.element_size() for each in gaps))


@RULES.dispatch(aten._scaled_dot_product_efficient_attention.default)
def seed_on_the_host(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Outside of CUDA graphs the seed and offset of this kernel's dropout are tensors on the CPU.

    Source: aten/src/ATen/native/transformers/cuda/attention.cu, `_efficient_attention_forward`, Note [Seed and Offset
    Device].
    """
    out, logsumexp, _, _ = call_original(op, args, kwargs)
    return out, logsumexp, torch.empty((), dtype=torch.long), torch.empty((), dtype=torch.long)


@RULES.workspace(aten._scaled_dot_product_efficient_attention.default)
def efficient_forward(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Blocks:
    """An fp32 output for head sizes over 128. Source: kernel_forward.h, `kNeedsOutputAccumulatorBuffer`."""
    batch, heads, queries, head_dim = args[0].shape
    return efficient_sizes.efficient_forward(
        batch=batch,
        heads=heads,
        queries=queries,
        head_dim=head_dim,
        value_dim=args[2].shape[-1],
        half=args[0].dtype in HALF,
    )


@RULES.workspace(aten._scaled_dot_product_efficient_attention_backward.default)
def efficient_backward(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Blocks:
    """Source: attention_backward.cu, `_efficient_attention_backward`."""
    query, key, value = args[1], args[2], args[3]
    batch, heads, queries, head_dim = query.shape
    return efficient_sizes.efficient_backward(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=key.shape[2],
        head_dim=head_dim,
        value_dim=value.shape[-1],
        half=query.dtype in HALF,
        capability=context.compute_capability,
        dropout=bool(args[9]),
    )


@RULES.workspace(aten._scaled_dot_product_cudnn_attention_backward.default)
def cudnn_backward(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Blocks:
    """One workspace: dq in fp32 and the sums `dO * O`.

    Source: cudnn-frontend 1.32, include/cudnn_frontend/node/scaled_dot_product_flash_attention.h,
    `CompositeSDPABackwardNode` (`dQ_accum`, `softmax_sum`). It is not known what the closed library allocates in addition.
    For grouped queries its graph has dk and dv for each query head, as tensors without memory (`dK_fullhead`, virtual).
    """
    query, key, value = args[1:4]
    batch, heads, queries, head_dim = query.shape
    if key.shape[1] != heads:
        size = batch * heads * key.shape[2] * (head_dim + value.shape[-1]) * query.element_size()
        text = (
            "cuDNN's backward of grouped queries is assumed to sum dk and dv of a group's query heads without memory for "
            f"each head, as its published graph allows. The library is closed, and may need up to {size:,} bytes more"
        )
        context.note(Note(kind="assumed", key="attention.sdpa.cudnn.grouped", text=text, bytes=size))
    return ((batch * heads * queries * (head_dim + 1)) * 4,)


@RULES.workspace(aten._safe_softmax.default)
def safe_softmax(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Blocks:
    """A mask of the scores that are -inf, a mask of fully masked rows, and zeros that are written into these rows.

    Source: aten/src/ATen/native/SoftMax.cpp, `_safe_softmax`, which calls these operators below autograd.
    """
    rows = result.numel() // max(result.shape[-1], 1)
    return result.numel(), rows, result.element_size()
