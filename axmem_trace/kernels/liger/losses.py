"""Liger's cross-entropy losses: over logits, and fused with the last linear layer.

Source: liger-kernel 0.8.1, `liger_kernel/ops/{cross_entropy,fused_linear_cross_entropy}.py`,
`transformers/model/loss_utils.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from axmem_trace.kernels.losses.replacing import IGNORE


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number` (`triton.next_power_of_2`).

    >>> [next_power_of_2(n) for n in (1, 5, 64, 65)]
    [1, 8, 64, 128]
    """
    return 1 << max(0, number - 1).bit_length()


def chunk_rows(hidden: torch.Tensor, weight: torch.Tensor) -> int:
    """The number of rows of hidden [rows, width] in one matmul with the head [vocabulary, width]. The logits of these rows
    have about as many elements as `hidden`."""
    (rows, width), vocabulary = hidden.shape, weight.shape[0]
    return next_power_of_2(-(-rows // -(-vocabulary // width)))


class CrossEntropy(torch.autograd.Function):
    """`LigerCrossEntropyFunction`: the gradient overwrites the logits, which are kept for backward."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, ignore_index: int) -> torch.Tensor:
        loss_by_row = torch.zeros(logits.shape[0], dtype=logits.dtype, device=logits.device)
        mask = _check_targets(target, ignore_index, logits.shape[-1])
        if logits.stride(-1) != 1:
            logits = logits.contiguous()
        if logits.requires_grad:
            ctx.save_for_backward(logits.detach())
        del mask
        return loss_by_row.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient, None, None


def _check_targets(target: torch.Tensor, ignore_index: int, vocabulary: int) -> torch.Tensor:
    """The mask of targets that are not ignored. Two products with the mask check that targets are inside the vocabulary."""
    mask = target != ignore_index
    mask.sum()
    torch.lt((target * mask).max(), vocabulary)
    torch.ge((target * mask).min(), 0)
    return mask


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = IGNORE,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Replaces `liger_cross_entropy`, which is called instead of `torch.nn.functional.cross_entropy`.

    Shapes: input [rows, vocabulary], target [rows]; a loss per row with `reduction="none"`, else a scalar.
    """
    if reduction == "none":
        return _UnreducedCrossEntropy.apply(input, target, ignore_index)
    return CrossEntropy.apply(input, target, ignore_index)


class _UnreducedCrossEntropy(torch.autograd.Function):
    """A loss for each row. Backward multiplies the kept gradient out of place (`cross_entropy_backward`)."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, ignore_index: int) -> torch.Tensor:
        loss_by_row = torch.zeros(logits.shape[0], dtype=logits.dtype, device=logits.device)
        _check_targets(target, ignore_index, logits.shape[-1])
        if logits.requires_grad:
            ctx.save_for_backward(logits.detach())
        return loss_by_row

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(1), None, None


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Replaces `LigerCrossEntropyLoss`, which is used instead of `torch.nn.CrossEntropyLoss`."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(input, target, ignore_index=self.ignore_index, reduction=self.reduction)


class FusedLinearCrossEntropy(torch.autograd.Function):
    """`LigerFusedLinearCrossEntropyFunction`: computes logits for one chunk of rows at a time. Forward computes the
    gradients of hidden states and head, and keeps them.

    Token scaling needs each token's probability. It allocates a copy of the chunk's logits, their softmax, and the softmax's
    rows without ignored targets. The scaled gradient is another copy.

    The gradient of the hidden states is allocated in evaluation too. A chunk's logits stay alive until those of the next
    chunk are computed, because a Python variable refers to them.
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
    ) -> Any:
        rows, step = hidden.shape[0], chunk_rows(hidden, weight)
        grad_hidden = torch.zeros_like(hidden)
        trains_head = hidden.requires_grad and weight.requires_grad
        grad_weight = torch.zeros_like(weight) if trains_head else None
        loss_by_row = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        mask = target != ignore_index
        mask.sum()
        for start in range(0, rows, step):
            chunk = hidden[start : start + step]
            logits = chunk @ weight.t()  # overwritten by their gradient
            if token_scaling:
                raw = logits.detach().clone()
                probabilities = torch.softmax(raw, dim=-1)
                counted = probabilities.clone()  # rows without ignored targets: here all rows
            gradient = logits
            if token_scaling:
                gradient = gradient * torch.zeros_like(logits[:, :1])
            if hidden.requires_grad:
                grad_hidden[start : start + step] = gradient @ weight
            if grad_weight is not None:
                _add_outer(grad_weight, gradient, chunk)
        if token_scaling:
            del raw, probabilities, counted  # alive until the loop has ended
        loss = loss_by_row.sum()
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden.detach(), None if grad_weight is None else grad_weight.detach())
        return loss

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors  # scaled in place
        return grad_hidden, grad_weight, None, None, None


def _add_outer(grad_weight: torch.Tensor, logits: torch.Tensor, chunk: torch.Tensor) -> None:
    """Adds a chunk's part of the head's gradient: directly to an fp32 sum (torch >= 2.8), else with two temporaries."""
    if grad_weight.dtype == torch.float32 and logits.dtype != torch.float32:
        if chunk.dtype != logits.dtype:
            chunk = chunk.to(logits.dtype)
        return
    grad_weight += torch.mm(logits.t(), chunk).float()


def fused_causal_lm_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = IGNORE,
    shift_labels: torch.Tensor | None = None,
    token_scaling: bool = False,
    fused: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Replaces `LigerForCausalLMLoss`. Shapes: hidden [batch, tokens, width], weight [vocabulary, width], labels [batch,
    tokens]; the loss is a scalar."""
    if shift_labels is None:
        labels = F.pad(labels, (0, 1), value=ignore_index)
        shift_labels = labels[..., 1:].contiguous()
    hidden = hidden.reshape(-1, hidden.shape[-1])
    apply = FusedLinearCrossEntropy.apply if fused is None else fused
    loss: torch.Tensor = apply(hidden, weight, shift_labels.view(-1), ignore_index, token_scaling)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
