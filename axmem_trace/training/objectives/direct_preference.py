"""DPO and IPO. Source: TRL 1.14.1 `trainer/dpo_trainer.py` `DataCollatorForPreference`, `_compute_loss`.

A pair is two rows; a micro-batch has all chosen rows first. The memory of one loss, in bytes for each element of the
logits (rows x tokens x vocabulary), with TRL's Triton kernel:

- forward: 4 for the policy's fp32 logits. While the reference's logits are cast to fp32, 2 + 4 more: **10**. Then 4 +
  4, and up to 2 for a copy of the completion tokens' logits of one side, which a mean needs.
- backward begins with **4**: the kernel keeps the policy's logits, because it got a view of them.
- backward: 4 more for their gradient, **8**.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.pair_losses import PAIR_LOSSES, Pairs
from axmem_trace.training.objectives.preference import Preference, completion_rows, halves
from axmem_trace.training.objectives.scoring import Scored
from axmem_trace.training.prepared import through_wrapper


class DirectPreference(Preference):
    """`rl: dpo` and `rl: ipo`."""

    def make_batch(self, recipe: Recipe, rows: int, row_tokens: int) -> Batch:
        """Chosen rows, then rejected ones; with precomputed references, one fp32 number for each row."""
        inputs = completion_rows(recipe, rows, row_tokens)
        if self.settings.reference.kind == "precomputed":
            for side in ("chosen", "rejected"):
                inputs[f"ref_{side}_logps"] = torch.zeros(rows // 2)
        return Batch(inputs)

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[Tensor, Any]:
        """The loss, and the policy's outputs, unless these stay inside a wrapper."""
        if not self.redirects:
            return self._compute_loss(run_model, inputs)
        policy = self.reference.policy
        return through_wrapper(run_model, policy, lambda: self._compute_loss(policy, inputs)[0]), None

    def _compute_loss(self, run_model: RunModel, inputs: Inputs) -> tuple[Tensor, Any]:
        """The outputs of both models are local variables, so their logits are alive until this returns."""
        mask = inputs["completion_mask"]
        call: dict[str, Any] = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        router = {"output_router_logits": True} if self.router_loss else {}
        scored = self.score(run_model, self.reference.policy, {**call, **router}, mask)
        masks = self._length_masks(mask[..., 1:])
        chosen, rejected = halves(self._sum(scored.values, masks))
        if self.settings.reference.kind == "precomputed":
            reference = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        else:
            scored_reference = self._score_reference(run_model, call, mask)
            reference = halves(self._sum(scored_reference.values, masks))
        pairs = self._pairs(chosen, rejected, reference, mask)
        loss = self._weigh(pairs, scored, inputs["input_ids"][..., 1:], mask[..., 1:])
        if self.router_loss:
            loss = loss + self.router_loss * scored.outputs.aux_loss
        _log_metrics(pairs, scored, inputs["input_ids"][..., 1:], mask[..., 1:])
        return loss, scored.outputs

    def _score_reference(self, run_model: RunModel, call: dict[str, Any], mask: Tensor) -> Scored:
        with self.reference.ready(run_model) as run_reference:
            model = self.reference.scored
            if self.redirects and self.reference.has_wrapper:
                scored: Scored = through_wrapper(
                    run_reference, model, lambda: self.score(model, model, call, mask, entropy=False)
                )
                return scored
            return self.score(run_reference, model, call, mask, entropy=False)

    def _length_masks(self, mask: Tensor) -> tuple[Tensor, Tensor] | None:
        """LD-DPO: the mask of the tokens up to the length of the shorter side, and that of the tokens after it; None
        without LD-DPO."""
        if self.settings.length_bias is None:
            return None
        positions = mask.cumsum(dim=1)
        lengths = mask.sum(dim=1).long()
        shared = torch.minimum(*halves(lengths))
        shared = torch.cat([shared, shared], dim=0).unsqueeze(1)
        return (positions > 0) & (positions <= shared), positions > shared

    def _sum(self, values: Tensor, masks: tuple[Tensor, Tensor] | None) -> Tensor:
        """Log-probability of each row's completion. LD-DPO gives less weight to tokens beyond the other side's length."""
        if masks is None:
            return values.sum(dim=1)
        in_both, beyond = masks
        return (values * in_both).sum(dim=1) + (self.settings.length_bias or 0.0) * (values * beyond).sum(dim=1)

    def _pairs(self, chosen: Tensor, rejected: Tensor, reference: tuple[Tensor, Tensor], mask: Tensor) -> Pairs:
        chosen_ratio, rejected_ratio = chosen - reference[0], rejected - reference[1]
        return Pairs(
            chosen=chosen_ratio,
            rejected=rejected_ratio,
            delta=chosen_ratio - rejected_ratio,
            chosen_logps=chosen,
            rejected_logps=rejected,
            chosen_reference=reference[0],
            rejected_reference=reference[1],
            completion_mask=mask,
            beta=self.settings.beta,
            smoothing=self.settings.label_smoothing,
        )

    def _weigh(self, pairs: Pairs, scored: Scored, labels: Tensor, mask: Tensor) -> Tensor:
        """The sum of the configured losses, each with its weight: a scalar."""
        names = self.settings.loss_types or ("sigmoid",)
        total: Any = 0.0
        for name, weight in zip(names, self.settings.loss_weights or (1.0,) * len(names), strict=True):
            if name == "sft":
                each = _likelihood(scored, labels, mask)
            else:
                each = PAIR_LOSSES[name](pairs)
            if self.settings.weighted:
                each *= _weights(scored, mask)
            total = total + each.mean() * weight
        assert isinstance(total, Tensor)
        return total


def _likelihood(scored: Scored, labels: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen completions: the same number for each pair. The logits are copied for
    it."""
    kept = halves(mask)[0]
    if scored.logits is None:
        chosen = halves(scored.values)[0]
        return (-chosen[kept.bool()].mean()).expand(chosen.shape[0])
    chosen, labels = halves(scored.logits)[0], halves(labels)[0]
    return F.cross_entropy(chosen[kept.bool()], labels[kept.bool()]).expand(chosen.shape[0])


def _weights(scored: Scored, mask: Tensor) -> Tensor:
    """WPO: two sums over the whole vocabulary, for which the logits are doubled. TRL refuses it without logits."""
    assert scored.logits is not None
    lengths = mask.sum(dim=1).clamp_min(1)
    with torch.no_grad():
        once = torch.logsumexp(scored.logits, dim=-1)
        twice = torch.logsumexp(2.0 * scored.logits, dim=-1)
        aligned = (scored.values - (twice - 2.0 * once)) * mask
    chosen, rejected = halves(torch.exp(aligned.sum(dim=1) / lengths))
    return chosen * rejected


def _log_metrics(pairs: Pairs, scored: Scored, labels: Tensor, mask: Tensor) -> None:
    """The tensors for the trainer's log: entropy, means of the completions' logits, accuracies, rewards."""
    assert scored.entropies is not None
    (scored.entropies * mask).sum()
    if scored.logits is not None:
        chosen_logits, rejected_logits = halves(scored.logits.detach())
        chosen_mask, rejected_mask = halves(mask)
        chosen_logits[chosen_mask.bool()].mean(-1).sum()
        rejected_logits[rejected_mask.bool()].mean(-1).sum()
        predictions = chosen_logits.argmax(dim=-1)
        kept = mask[: len(mask) // 2].bool()
        _correct = (predictions == labels[: len(labels) // 2]) & kept
    log_rewards(pairs.beta * pairs.chosen.detach(), pairs.beta * pairs.rejected.detach())
    pairs.chosen_logps.mean(), pairs.rejected_logps.mean()


def log_rewards(chosen: Tensor, rejected: Tensor) -> None:
    """The means of both, how often the chosen one is better, and the difference."""
    chosen.mean(), rejected.mean()
    (chosen > rejected).float().mean()
    (chosen - rejected).mean()
