"""ORPO and SimPO: there is no reference. The likelihood of the chosen text may be part of the loss.

Source: TRL 1.14.1 `experimental/orpo/orpo_trainer.py`, `experimental/cpo/cpo_trainer.py` (`concatenated_forward`,
`get_batch_logps`, `odds_ratio_loss`, `cpo_loss`, `get_batch_loss_metrics`), `experimental/utils.py`
`DPODataCollatorWithPadding`.

Chosen and rejected rows are separate and are joined on the GPU. The bytes for each element of the logits of all rows,
with TRL's Triton kernel, are in forward: 4, + 2 for the dense copy of the chosen rows, + 2 for their log-softmax =
**8**. Backward begins with 4 + 2 = **6** and reaches **10**: the gradient of all rows, the gradient of the chosen rows,
and the latter expanded to all rows. Without the likelihood: 6 (bf16 and fp32 logits), 4 and 8.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axmem_trace.kernels.losses.log_probabilities import choose_log_probabilities
from axmem_trace.kernels.losses.replacing import IGNORE
from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.objectives.direct_preference import log_rewards
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.preference import Preference, completion_rows


class JoinedPairs(Preference):
    """The common base of ORPO and SimPO: one forward over both sides of each pair."""

    def __init__(self, recipe: Recipe, built: BuiltModel) -> None:
        super().__init__(recipe, built)
        self.helpers = choose_log_probabilities(self.settings)
        if not getattr(built.config, "output_router_logits", False):
            self.router_loss = 0.0  # only where the model's configuration requests it, which DPO does not require

    def make_batch(self, recipe: Recipe, rows: int, row_tokens: int) -> Batch:
        """Ids, mask and labels of each side and of the prompt, int64. Those of the prompt are never read."""
        pairs = rows // 2
        inputs: Inputs = {}
        for side in ("chosen", "rejected"):
            made = completion_rows(recipe, pairs, row_tokens)
            inputs[f"{side}_input_ids"] = made["input_ids"]
            inputs[f"{side}_attention_mask"] = made["attention_mask"]
            inputs[f"{side}_labels"] = made["input_ids"].masked_fill(made["completion_mask"] == 0, IGNORE)
        prompt = max(1, row_tokens - recipe.objective.completion_tokens)
        for name in ("prompt_input_ids", "prompt_attention_mask"):
            inputs[name] = torch.ones(pairs, prompt, dtype=torch.int64)
        return Batch(inputs)

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[Tensor, Any]:
        """The outputs are alive until this returns. No other tensor of their size is."""
        ids, attention_mask, labels = (_joined(inputs, name) for name in ("input_ids", "attention_mask", "labels"))
        router = {"output_router_logits": True} if self.router_loss else {}
        outputs = run_model(input_ids=ids, attention_mask=attention_mask, use_cache=False, **router)
        logits = outputs.logits
        likelihood = self._likelihood(logits, ids, attention_mask, labels)
        chosen, rejected = _sides(self._average(logits, labels))
        loss = self._loss(chosen, rejected, likelihood)
        chosen_logits, rejected_logits = _sides(logits.detach())
        rejected_logits.mean(), chosen_logits.mean()
        if self.router_loss:
            loss = loss + self.router_loss * outputs.aux_loss
        return loss, outputs

    def _likelihood(self, logits: Tensor, ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood of the chosen rows, or a zero."""
        raise NotImplementedError

    def _loss(self, chosen: Tensor, rejected: Tensor, likelihood: Tensor) -> Tensor:
        """The loss (a scalar) from average log-probabilities [pairs]."""
        raise NotImplementedError

    def _average(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Average log-probability of each row's completion tokens, [rows]."""
        labels = labels[:, 1:].clone()
        kept = labels != IGNORE
        labels = self._without_ignored(labels)
        values = self.helpers.select(logits[:, :-1, :], labels)
        return (values * kept).sum(-1) / kept.sum(-1)

    def _without_ignored(self, labels: Tensor) -> Tensor:
        """Zeros instead of ignored labels."""
        return torch.where(labels == IGNORE, 0, labels)


class OddsRatio(JoinedPairs):
    """`rl: orpo`: the likelihood is that of prompt and completion."""

    def _likelihood(self, logits: Tensor, ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        own = ids.clone()
        own = torch.where(attention_mask == 1, own, IGNORE)
        return _cross_entropy(_sides(logits)[0], _sides(own)[0])

    def _loss(self, chosen: Tensor, rejected: Tensor, likelihood: Tensor) -> Tensor:
        log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        ratio = F.logsigmoid(log_odds)
        loss = likelihood - (self.settings.beta * ratio).mean()
        log_rewards(self.settings.beta * chosen.detach(), self.settings.beta * rejected.detach())
        ratio.mean(), log_odds.mean()
        return loss


class SimplePreference(JoinedPairs):
    """`rl: simpo`: the likelihood is that of the completion, unless `cpo_alpha` is 0."""

    def _likelihood(self, logits: Tensor, ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        own = labels.clone()
        if not self.settings.likelihood:
            return torch.zeros((), device=logits.device)
        return _cross_entropy(_sides(logits)[0], _sides(own)[0])

    def _without_ignored(self, labels: Tensor) -> Tensor:
        labels[labels == IGNORE] = 0
        return labels

    def _loss(self, chosen: Tensor, rejected: Tensor, likelihood: Tensor) -> Tensor:
        beta, smoothing = self.settings.beta, self.settings.label_smoothing
        margins = chosen - rejected - self.settings.gamma / beta
        losses = -F.logsigmoid(beta * margins) * (1 - smoothing) - F.logsigmoid(-beta * margins) * smoothing
        loss = losses.mean() + float(self.settings.likelihood) * likelihood
        log_rewards(beta * chosen.detach(), beta * rejected.detach())
        return loss


def _joined(inputs: Inputs, name: str) -> Tensor:
    return torch.cat((inputs[f"chosen_{name}"], inputs[f"rejected_{name}"]), dim=0)


def _sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen and rejected rows as two slices. In backward, each slice is copied into a tensor of zeros, and both
    tensors are added. With two chunks, they would be joined instead."""
    pairs = values.shape[0] // 2
    return values[:pairs], values[pairs:]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of logits that predict the next token. Logits and labels are copied without their last or first
    position."""
    shifted = logits[..., :-1, :].contiguous()
    return F.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels[..., 1:].contiguous().view(-1))


def _log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(values)), by two formulas. For each position, the more exact one is used."""
    return torch.where(values < -math.log(2), torch.log1p(-torch.exp(values)), torch.log(-torch.expm1(values)))
