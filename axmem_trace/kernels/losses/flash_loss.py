"""`flash_attn_cross_entropy`: flash-attn's Triton cross-entropy instead of transformers' `fixed_cross_entropy`.

Source: flash-attn 2.8.3 `ops/triton/cross_entropy.py` (`CrossEntropyLoss`, with `inplace_backward=False`); axolotl 0.19
`monkeypatch/llama_attn_hijack_flash.py` `patch_fa_llama_cross_entropy`.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.losses.replacing import IGNORE


class FlashCrossEntropy(torch.autograd.Function):
    """Keeps its input logits and one fp32 number per row, and allocates no softmax. The gradient is a new matrix."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if logits.stride(-1) != 1:
            logits = logits.contiguous()
        losses, lse, z_losses = (
            torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device) for _ in range(3)
        )
        ctx.save_for_backward(logits, lse, labels)
        ctx.mark_non_differentiable(z_losses)
        return losses, z_losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        logits, *_ = ctx.saved_tensors
        return torch.empty_like(logits), None


def fixed_cross_entropy(
    source: torch.Tensor,
    target: torch.Tensor,
    num_items_in_batch: Any = None,
    ignore_index: int = IGNORE,
    **kwargs: Any,
) -> torch.Tensor:
    """The loss, a scalar, of source [rows, vocabulary] and target [rows]."""
    losses, _ = FlashCrossEntropy.apply(source, target)
    total: torch.Tensor = losses.sum()
    return total / (num_items_in_batch if num_items_in_batch is not None else (target != ignore_index).sum())
