"""Liger's cross-entropy fused with the last linear layer, in liger-kernel 0.8.4. `losses.py` has that of 0.8.1.

Source: liger-kernel 0.8.4 `ops/fused_linear_cross_entropy.py` `fused_linear_cross_entropy_forward`.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.card import HALF
from axmem_trace.kernels.liger.losses import chunk_rows


class FusedLinearCrossEntropy(torch.autograd.Function):
    """Computes logits for one chunk of rows at a time. Forward computes the gradients of hidden states and head, and keeps
    them.

    If hidden states, head and autocast have the same dtype, all chunks share one buffer for logits, and matmuls write
    directly into the gradients. Otherwise a chunk's logits are freed before those of the next chunk are allocated.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        ignore_index: int,
        token_scaling: bool = False,
        sums_directly: bool = True,
    ) -> Any:
        rows, vocabulary = hidden.shape[0], weight.shape[0]
        step = min(chunk_rows(hidden, weight), rows)
        grad_hidden = torch.zeros_like(hidden)
        trains_head = hidden.requires_grad and weight.requires_grad
        grad_weight = torch.zeros_like(weight) if trains_head else None
        loss_by_row = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        mask = target != ignore_index
        mask.sum()
        one_dtype = has_one_dtype(hidden, weight)
        buffer = torch.empty((step, vocabulary), dtype=hidden.dtype, device=hidden.device) if one_dtype else None
        for start in range(0, rows, step):
            chunk = hidden[start : start + step]
            gradient = chunk @ weight.t() if buffer is None else buffer[: chunk.shape[0]]  # it overwrites the logits
            if token_scaling:
                _look_up_probabilities(gradient)
                gradient = gradient * torch.zeros_like(gradient[:, :1])
            if hidden.requires_grad and not (one_dtype and gradient.dtype == grad_hidden.dtype):
                grad_hidden[start : start + step] = gradient @ weight
            if grad_weight is not None:
                _add_outer(grad_weight, gradient, chunk, sums_directly)
            del gradient, chunk
        del buffer
        loss = loss_by_row.sum()
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden.detach(), None if grad_weight is None else grad_weight.detach())
        return loss

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors  # scaled in place
        return grad_hidden, grad_weight, None, None, None, None


def has_one_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """`_can_use_mm_out`: true if autocast would not cast these operands."""
    if hidden.dtype != weight.dtype or hidden.dtype not in (*HALF, torch.float32):
        return False
    return not torch.is_autocast_enabled("cuda") or torch.get_autocast_dtype("cuda") == hidden.dtype


def _look_up_probabilities(logits: torch.Tensor) -> None:
    """Allocates a copy of the logits, its softmax, and the softmax's rows without ignored targets: here all rows."""
    copy = logits.detach().clone()
    probabilities = torch.softmax(copy, dim=-1)
    del copy
    probabilities.clone()


def _add_outer(grad_weight: torch.Tensor, gradient: torch.Tensor, chunk: torch.Tensor, sums_directly: bool) -> None:
    """Adds a chunk's part of the head's gradient: in one operator, or with two temporary tensors of the head's size.

    Args:
        sums_directly: the card's compute capability is 8.0 or above.
    """
    if sums_directly and gradient.dtype in HALF and grad_weight.dtype in (torch.float32, gradient.dtype):
        if chunk.dtype != gradient.dtype:
            chunk.to(gradient.dtype)
        return
    grad_weight += torch.mm(gradient.t(), chunk).float()
