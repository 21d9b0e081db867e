"""FlashAttention-2 (flash-attn 2.8, or its build on the Hub): `flash_attn_func` and `flash_attn_varlen_func`.

Source: flash-attn 2.8.3, flash_attn/flash_attn_interface.py (`FlashAttnFunc`, `FlashAttnVarlenFunc`) and
csrc/flash_attn/flash_api.cpp. Head sizes that are not multiples of 8 are padded, and the padded copies are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from axmem_trace.kernels.attention import flash_sizes
from axmem_trace.kernels.attention.flash_sizes import Blocks
from axmem_trace.kernels.attention.fused import FusedKernel, Heads, run_fused
from axmem_trace.kernels.attention.refuse_call import note_refusal, refuse_flash_call
from axmem_trace.kernels.attention.sources import note_source
from axmem_trace.kernels.card import num_sms
from axmem_trace.tracing.context import KernelContext

NAME = "FlashAttention-2"


def make_flash2(context: KernelContext) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`flash_attn_func` and `flash_attn_varlen_func` with the package's own parameters.

    transformers reads the names of the parameters to find out what the kernel supports (`_lazy_define_process_function`).
    """

    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> torch.Tensor:
        note_source(context, "flash_attn")
        _refuse_softcap(context, softcap, dropout_p)
        return run_flash2(
            context,
            _repeated(context, q, k, v),
            dropout=dropout_p,
            deterministic=deterministic,
            window_left=window_size[0],
        )

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        note_source(context, "flash_attn")
        _refuse_softcap(context, softcap, dropout_p)
        return run_flash2_varlen(
            context,
            _repeated(context, q, k, v),
            cu_seqlens_q,
            cu_seqlens_k,
            deterministic=deterministic,
            window_left=window_size[0],
        )

    return flash_attn_func, flash_attn_varlen_func


def _refuse_softcap(context: KernelContext, softcap: float, dropout: float) -> None:
    """`mha_fwd`: "Softcapping does not support dropout for now"."""
    if softcap and dropout:
        note_refusal(
            context,
            f"{NAME} does not support dropout together with a soft cap; this model's configuration sets both "
            "`attn_logit_softcapping` and `attention_dropout`",
        )


def _repeated(context: KernelContext, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Heads:
    """With `--assume repeats_kv=true`, keys and values are repeated for each query head, and the kernel keeps the copies.

    Source: transformers 4.45 `modeling_mistral.py`, `MistralFlashAttention2.forward`, `repeat_kv`.
    """
    groups = q.shape[-2] // k.shape[-2]
    if groups == 1 or not context.repeats_kv:
        return q, k, v
    *rows, kv_heads, head_dim = k.shape
    size = (*rows, kv_heads, groups, head_dim)
    key, value = (each.unsqueeze(-2).expand(size).reshape(*rows, kv_heads * groups, head_dim) for each in (k, v))
    return q, key, value


def run_flash2(
    context: KernelContext,
    heads: Heads,
    *,
    dropout: float = 0.0,
    deterministic: bool = False,
    name: str = NAME,
    pads: bool = True,
    keeps_rng: bool = True,
    window_left: int | None = None,
    returns_lse: bool = False,
) -> torch.Tensor:
    """The fixed-length kernel. Heads are (B, S, H, D).

    Args:
        pads: the Python code around the kernel pads head sizes that are not multiples of 8. Without it they are refused.
        keeps_rng: the RNG state is kept even without dropout.
        window_left: the window of flash-attn's own operator; None: another library's kernel, which the dispatcher does not
            see.
        returns_lse: logsumexp and RNG state, if kept, are outputs too, so autograd allocates zeros for their gradients.
    """
    refuse_flash_call(context, heads, name=name, multiple=1 if pads else 8)
    sms = num_sms(context)
    kernel = FusedKernel(
        name="flash_attn_func",
        make_outputs=partial(_fixed_outputs, keeps_rng=keeps_rng),
        forward_scratch=partial(_fixed_forward_scratch, sms=0 if dropout else sms),
        backward_scratch=partial(
            _fixed_backward_scratch, sms=sms if deterministic else 0, zeros=_zeros(heads, returns_lse, keeps_rng)
        ),
        padding=-heads[0].shape[-1] % 8,
        dispatched=window_left is not None,
        window_left=-1 if window_left is None else window_left,
    )
    return run_fused(context, kernel, heads)


def run_flash2_varlen(
    context: KernelContext,
    heads: Heads,
    bounds_q: torch.Tensor,
    bounds_k: torch.Tensor,
    *,
    deterministic: bool = False,
    name: str = NAME,
    pads: bool = True,
    keeps_rng: bool = True,
    window_left: int | None = None,
    returns_lse: bool = False,
) -> torch.Tensor:
    """The kernel for rows of samples without padding. Heads are (tokens, H, D), the bounds (samples + 1,)."""
    refuse_flash_call(context, heads, name=name, multiple=1 if pads else 8)
    kernel = FusedKernel(
        name="flash_attn_varlen_func",
        make_outputs=partial(_varlen_outputs, keeps_rng=keeps_rng),
        backward_scratch=partial(
            _varlen_backward_scratch,
            samples=bounds_q.numel() - 1,
            sms=num_sms(context) if deterministic else 0,
            zeros=_zeros(heads, returns_lse, keeps_rng),
        ),
        padding=-heads[0].shape[-1] % 8,
        dispatched=window_left is not None,
        window_left=-1 if window_left is None else window_left,
    )
    return run_fused(context, kernel, heads, also_kept=(bounds_q, bounds_k))


def allocate_block(context: KernelContext, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
    """`_flash_attn_forward` outside of autograd: the output and logsumexp of heads (B, S, H, D)."""
    note_source(context, "flash_attn")
    refuse_flash_call(context, heads, name=NAME, multiple=8)
    out, lse, *_ = _fixed_outputs(heads, keeps_rng=True)
    context.recorder.workspace(_fixed_forward_scratch(heads, sms=num_sms(context)), "flash_attn_func")
    return out, lse


def run_block_backward(context: KernelContext, heads: Heads) -> None:
    """`_flash_attn_backward`, whose gradients the caller has allocated."""
    scratch = _fixed_backward_scratch(heads, sms=0, zeros=())
    context.recorder.workspace(scratch, "flash_attn_func_backward")


def _fixed_outputs(heads: Heads, *, keeps_rng: bool) -> tuple[torch.Tensor, ...]:
    """`mha_fwd`: out, softmax_lse (B, H, S) in fp32, rng_state (2,) in int64."""
    query = heads[0]
    batch, queries, num_heads, _ = query.shape
    return _with_rng(query, (batch, num_heads, queries), keeps_rng)


def _varlen_outputs(heads: Heads, *, keeps_rng: bool) -> tuple[torch.Tensor, ...]:
    """`mha_varlen_fwd`: softmax_lse is (H, tokens), without padding since 2.6."""
    query = heads[0]
    return _with_rng(query, (query.shape[1], query.shape[0]), keeps_rng)


def _with_rng(query: torch.Tensor, lse_shape: tuple[int, ...], keeps_rng: bool) -> tuple[torch.Tensor, ...]:
    out = torch.empty_like(query)
    lse = torch.empty(lse_shape, dtype=torch.float32, device=query.device)
    rng_state = torch.empty(2, dtype=torch.int64, device=query.device)
    return (out, lse, rng_state) if keeps_rng else (out, lse)


def _fixed_forward_scratch(heads: Heads, *, sms: int) -> Blocks:
    query, key, _ = heads
    batch, queries, num_heads, head_dim = query.shape
    if not sms:
        return ()
    splits = flash_sizes.num_splits(
        batch=batch, heads=num_heads, queries=queries, keys=key.shape[1], head_dim=head_dim, num_sms=sms
    )
    return flash_sizes.split_scratch(splits=splits, batch=batch, heads=num_heads, queries=queries, head_dim=head_dim)


def _zeros(heads: Heads, returns_lse: bool, keeps_rng: bool) -> Blocks:
    lse = heads[0].numel() // heads[0].shape[-1] * 4
    return () if not returns_lse else (lse, 16) if keeps_rng else (lse,)


def _fixed_backward_scratch(heads: Heads, *, sms: int, zeros: Blocks) -> Blocks:
    query, key, _ = heads
    batch, queries, num_heads, head_dim = query.shape
    return zeros + flash_sizes.flash2_backward(
        batch=batch,
        heads=num_heads,
        kv_heads=key.shape[2],
        queries=queries,
        keys=key.shape[1],
        head_dim=head_dim,
        itemsize=query.element_size(),
        deterministic_splits=flash_sizes.deterministic_splits(sms, batch, num_heads) if sms else 1,
    )


def _varlen_backward_scratch(heads: Heads, *, samples: int, sms: int, zeros: Blocks) -> Blocks:
    query, key, _ = heads
    tokens, num_heads, head_dim = query.shape
    return zeros + flash_sizes.flash2_varlen_backward(
        samples=samples,
        heads=num_heads,
        kv_heads=key.shape[1],
        total_queries=tokens,
        total_keys=key.shape[0],
        head_dim=head_dim,
        itemsize=query.element_size(),
        deterministic_splits=flash_sizes.deterministic_splits(sms, samples, num_heads) if sms else 1,
    )
