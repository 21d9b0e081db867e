"""axolotl's distillation loss, computed from hidden states and head in chunks of tokens. Forward computes the gradients.

Source: axolotl 0.19 `integrations/kd/kernels/liger.py` (`LigerFusedLinearKLTopKLogprobFunction`, compiled, chunks of
1024 tokens) over liger-kernel's `chunked_loss/fused_linear_distillation.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.losses.replacing import IGNORE

CHUNK_TOKENS = 1024


class FusedLinearDistillation(torch.autograd.Function):
    """Keeps the gradients of hidden states and head.

    The head's gradient is computed even if the head does not train. Each chunk allocates its part before it is added. A
    chunk's logits exist three times: in the head's dtype, in fp32 (the gradient into which the teacher's few tokens are
    scattered), and as the gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        grad_weight = torch.zeros_like(weight)
        flat = hidden.reshape(-1, hidden.shape[-1])
        targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORE)[:, 1:].contiguous()
        pieces = [_chunk(each, weight, grad_weight) for each in flat.chunk(max(1, flat.shape[0] // CHUNK_TOKENS))]
        grad_hidden = torch.cat(pieces)
        del pieces, targets
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.shape = hidden.shape
        return torch.zeros((), dtype=hidden.dtype, device=hidden.device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_hidden, grad_weight = grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0]
        return grad_hidden.view(ctx.shape), grad_weight, None


def _chunk(hidden: torch.Tensor, weight: torch.Tensor, grad_weight: torch.Tensor) -> torch.Tensor:
    """Adds one chunk's part of the head's gradient, and returns the gradient of its hidden states."""
    logits = hidden @ weight.t()
    scattered = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
    grad_logits = torch.empty_like(logits)
    del logits, scattered
    grad_hidden = grad_logits @ weight
    grad_weight.add_(grad_logits.t() @ hidden)
    return grad_hidden


def distillation_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss, a scalar, of hidden [batch, tokens, width], weight [vocabulary, width] and labels [batch, tokens]."""
    loss: torch.Tensor = FusedLinearDistillation.apply(hidden, weight, labels)
    return loss
