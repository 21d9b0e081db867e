"""GRPO's losses over generated tokens. All tensors have rows x completion tokens elements, with every loss type.

Source: TRL 1.14.1 `trainer/grpo_trainer.py` `_compute_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axmem_trace.recipe.objective import Objective
from axmem_trace.training.batches.batch import Inputs

EPSILON = 0.2
"""Bounds of the clipping, below and above (TRL's default); their values do not change memory."""


def policy_loss(given: Inputs, values: Tensor, entropies: Tensor, settings: Objective, *, training: bool) -> Tensor:
    """The loss (a scalar) from log-probabilities and entropies [rows, C] of the policy."""
    rollouts = settings.rollouts
    assert rollouts is not None
    mask, advantages = given["completion_mask"], given["advantages"].unsqueeze(1)
    old = given.get("old_per_token_logps")
    ratio = torch.exp(values - (values.detach() if old is None else old))
    divergence = _divergence(given["ref_per_token_logps"], values) if settings.reference.kind != "none" else None
    losses = _token_losses(rollouts.loss_type, ratio, advantages, values)
    if "importance_sampling_ratio" in given:
        losses = losses * given["importance_sampling_ratio"]
    if divergence is not None:
        losses = losses + settings.beta * divergence
    loss = _reduce(rollouts.loss_type, losses, mask, given["num_items_in_batch"], training=training)
    if rollouts.entropy_trains:
        loss = loss - 0.01 * ((entropies * mask).sum() / mask.sum().clamp(min=1.0))
    _log_metrics(ratio, advantages, entropies, divergence, mask, clips=rollouts.loss_type in _CLIPPED)
    return loss


_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


def _divergence(reference: Tensor, values: Tensor) -> Tensor:
    return torch.exp(reference - values) - (reference - values) - 1


def _token_losses(loss_type: str, ratio: Tensor, advantages: Tensor, values: Tensor) -> Tensor:
    if loss_type in ("cispo", "vespo"):
        return -torch.clamp(ratio, max=1 + EPSILON).detach() * advantages * values
    if loss_type == "sapo":
        temperatures = torch.where(advantages > 0, 1.0, 1.05)
        return -(torch.sigmoid(temperatures * (ratio - 1)) * 4 / temperatures) * advantages
    clipped = torch.clamp(ratio, 1 - EPSILON, 1 + EPSILON)
    one, other = ratio * advantages, clipped * advantages
    return -torch.min(one, other)


def _reduce(loss_type: str, losses: Tensor, mask: Tensor, num_items: Tensor, *, training: bool) -> Tensor:
    if loss_type in ("grpo", "sapo"):
        return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean() / 1.0
    if loss_type == "luspo":
        return (losses * mask).sum(-1).mean() / 1.0
    if loss_type in ("bnpo", "dr_grpo"):
        return (losses * mask).sum() / mask.sum().clamp(min=1.0) / 1.0
    normalizer = num_items.clamp(min=1.0)
    return (losses * mask).sum() / (normalizer * 1.0 if training else normalizer)


def _log_metrics(
    ratio: Tensor, advantages: Tensor, entropies: Tensor, divergence: Tensor | None, mask: Tensor, *, clips: bool
) -> None:
    """Means over tokens: the divergence, the entropy, and the share of clipped tokens."""
    for each in (divergence, entropies):
        if each is not None:
            _token_mean(each, mask)
    if not clips:
        return
    low = (ratio < 1 - EPSILON) & (advantages < 0)
    high = (ratio > 1 + EPSILON) & (advantages > 0)
    for each in (low, high, low | high):
        _token_mean(each.float(), mask)
    for each in (low, high):
        _row_mean(each.float(), mask).min()


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    totals = torch.stack([(values * mask).sum(), mask.sum().float()])
    return totals[0] / totals[1].clamp(min=1.0)


def _row_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1) / mask.sum(-1)
