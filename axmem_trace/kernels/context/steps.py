"""A ring in which each rank passes keys and values to the next one, and merges the results of FlashAttention-2 for each.

With early and late parts of each row (`head_tail`), a rank sees the early parts of the previous ranks. Its late part also
sees those of the later ranks. Without them, a rank sees all tokens of the previous ranks.

Source: ringmaster 0.2.7 `ring/zigzag.py` (`ZigzagRingAttention`), `ring/p2p_attn.py` (`RingP2PAttention`, `_ishift`),
`ring/merge.py`. flash-attn 2.8.3 `_flash_attn_forward`, `_flash_attn_backward` run the blocks.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.attention.flash2 import allocate_block, run_block_backward
from axmem_trace.kernels.attention.fused import Heads
from axmem_trace.tracing.context import KernelContext


def run_steps(context: KernelContext, heads: Heads, *, ranks: int, place: int, head_tail: bool) -> torch.Tensor:
    """Computes (B, S, H, D) from this rank's heads (B, H, S, D)."""
    kind = _HeadTail if head_tail else _Steps
    out: torch.Tensor = kind.apply(*heads, context, ranks, place)
    return out


def _receive(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors that are received from another rank while the current ones are in use."""
    return tuple(torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in tensors)


def _as_rows(heads: Heads) -> tuple[torch.Tensor, ...]:
    return tuple(each.transpose(1, 2).contiguous() for each in heads)


def _scale_of(lse: torch.Tensor) -> torch.Tensor:
    """Copies (B, H, S) to (B, S, H, 1)."""
    return lse.transpose(1, 2).unsqueeze(-1).contiguous().to(torch.float32)


def _merge(
    merged: tuple[torch.Tensor, torch.Tensor] | None, block: torch.Tensor, block_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges one more block into the output in fp32 and into its logsumexp."""
    block_lse = _scale_of(block_lse)
    block = block.to(torch.float32)
    if merged is None:
        return block, block_lse
    out, lse = merged
    new_lse = torch.logaddexp(lse, block_lse)
    out = torch.exp(lse - new_lse) * out + torch.exp(block_lse - new_lse) * block
    return out, new_lse


def _merge_late(merged: tuple[torch.Tensor, torch.Tensor], block: torch.Tensor, block_lse: torch.Tensor) -> None:
    """Merges a block of the late part, in place."""
    block_lse = _scale_of(block_lse)
    block = block.to(torch.float32)
    late = slice(block.shape[1], None)
    out, lse = merged[0][:, late], merged[1][:, late]
    new_lse = torch.logaddexp(lse, block_lse)
    merged[0][:, late] = torch.exp(lse - new_lse) * out + torch.exp(block_lse - new_lse) * block
    merged[1][:, late] = new_lse


class _Steps(torch.autograd.Function):
    """Each rank has one part of the rows. It keeps query, key, value, output and logsumexp of its own tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        context: KernelContext,
        ranks: int,
        place: int,
    ) -> torch.Tensor:
        query, key, value = _as_rows((q, k, v))
        merged = None
        for step in range(ranks):
            if step < ranks - 1:
                arriving = _receive((key, value))
            if step <= place:
                block, lse = allocate_block(context, (query, key, value))
                merged = _merge(merged, block, lse)
            if step < ranks - 1:
                key, value = arriving
        return _keep(ctx, (q, k, v), query, merged, (context, ranks, place))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        context, ranks, place = ctx.settings
        grad_out = grad_outputs[0].contiguous()
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        next_dk: Any = None
        next_dv: Any = None
        for step in range(ranks):
            if step < ranks - 1:
                arriving = _receive((key, value))
            if step <= place:
                block_dq = torch.empty_like(query)
                block_dk = torch.empty_like(key)
                block_dv = torch.empty_like(value)
                run_block_backward(context, (query, key, value))
                dq = dq + block_dq
                if step:
                    dk, dv = next_dk, next_dv
                dk = dk + block_dk
                dv = dv + block_dv
            else:
                dk, dv = next_dk, next_dv
            (next_dk,) = _receive((dk,))
            (next_dv,) = _receive((dv,))
            if step < ranks - 1:
                key, value = arriving
            else:
                (key,) = _receive((key,))
                (value,) = _receive((value,))
        dk, dv = next_dk, next_dv
        del grad_out, block_dq, block_dk, block_dv
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None, None


class _HeadTail(torch.autograd.Function):
    """Each rank has an early and a late part of the rows. The tensors of a step stay until the next step of its kind."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        context: KernelContext,
        ranks: int,
        place: int,
    ) -> torch.Tensor:
        query, key, value = _as_rows((q, k, v))
        half = query.shape[1] // 2
        late = query[:, half:].contiguous()
        merged: Any = None
        for step in range(ranks):
            if step < ranks - 1:
                arriving = _receive((key, value))
            if step == 0:
                block, lse = allocate_block(context, (query, key, value))
                merged = _merge(merged, block, lse)
            elif step <= place:
                block, lse = allocate_block(context, _with_early_keys((query, key, value), half))
                merged = _merge(merged, block, lse)
            else:
                block, lse = allocate_block(context, (late, key, value))
                _merge_late(merged, block, lse)
            if step < ranks - 1:
                key, value = arriving
        return _keep(ctx, (q, k, v), query, merged, (context, ranks, place))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        context, ranks, place = ctx.settings
        grad_out, half = grad_outputs[0].contiguous(), query.shape[1] // 2
        late = query[:, half:].contiguous()
        late_parts = [each[:, half:].contiguous() for each in (grad_out, out)]
        late_parts.append(lse[:, :, half:].contiguous())
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for step in range(ranks):
            if step < ranks - 1:
                arriving = _receive((key, value))
            if step == 0:
                block_dq, block_dk, block_dv = _block_gradients(context, (query, key, value))
                dq += block_dq
                dk += block_dk
                dv += block_dv
            elif step <= place:
                early_key = key[:, :half].contiguous()
                early_value = value[:, :half].contiguous()
                block_dq = torch.empty_like(query)
                early_dk = torch.empty_like(early_key)
                early_dv = torch.empty_like(early_value)
                run_block_backward(context, (query, early_key, early_value))
                dq += block_dq
                dk[:, :half] += early_dk
                dv[:, :half] += early_dv
            else:
                late_dq = torch.empty_like(late)
                block_dk = torch.empty_like(key)
                block_dv = torch.empty_like(value)
                run_block_backward(context, (late, key, value))
                dq[:, half:] += late_dq
                dk += block_dk
                dv += block_dv
            (dk,) = _receive((dk,))
            (dv,) = _receive((dv,))
            if step < ranks - 1:
                key, value = arriving
            else:
                (key,) = _receive((key,))
                (value,) = _receive((value,))
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None, None


def _with_early_keys(heads: Heads, half: int) -> Heads:
    """Copies of the early part of keys and values; nothing keeps them but the caller's call."""
    query, key, value = heads
    return query, key[:, :half].contiguous(), value[:, :half].contiguous()


def _block_gradients(context: KernelContext, heads: Heads) -> list[torch.Tensor]:
    gradients = [torch.empty_like(each) for each in heads]
    run_block_backward(context, heads)
    return gradients


def _keep(
    ctx: Any,
    inputs: Heads,
    query: torch.Tensor,
    merged: tuple[torch.Tensor, torch.Tensor] | None,
    settings: tuple[KernelContext, int, int],
) -> torch.Tensor:
    """Saves the tensors that backward needs. Keys and values are copied again, because the first copies were passed on."""
    assert merged is not None
    out = merged[0].to(query.dtype)
    lse = merged[1].squeeze(-1).transpose(1, 2).contiguous()
    _, key, value = inputs
    ctx.save_for_backward(query, key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous(), out, lse)
    ctx.settings = settings
    return out
