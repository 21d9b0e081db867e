"""KTO: single texts, each marked as wanted or not. Source: TRL 1.14.1 `trainer/kto_trainer.py`
`DataCollatorForUnpairedPreference`, `_compute_kl_logps`, `_compute_loss`.

Every prompt is used twice. The second time it has the completion of another sample (a mismatched completion), to
estimate the KL divergence. There are four forwards, one of them with a graph: policy on the mismatched completions,
policy, reference on the mismatched completions, reference. The bytes for each element of the logits (rows x tokens x
vocabulary), with TRL's Triton kernel, are in forward: 4 of the policy and 4 of the reference, which are both alive
until the end; 4 for the selected rows of both kinds together; and for one kind, another copy of the completion tokens'
logits. Backward begins with 4 and reaches 8.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.preference import Preference, completion_rows
from axmem_trace.training.objectives.scoring import Scored


class KahnemanTversky(Preference):
    """`rl: kto`."""

    def make_batch(self, recipe: Recipe, rows: int, row_tokens: int) -> Batch:
        """Both kinds of rows, with equal lengths, and a label for each row: half of them are desirable."""
        inputs = completion_rows(recipe, rows, row_tokens)
        inputs.update({f"KL_{name}": value.clone() for name, value in inputs.items()})
        inputs["label"] = torch.arange(rows) % 2 == 0
        return Batch(inputs)

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[Tensor, Any]:
        """The outputs of both models are local variables, so their logits are alive until this returns."""
        mask = inputs["completion_mask"]
        strange = self._strange(run_model, self.reference.policy, inputs)
        call: dict[str, Any] = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        router = {"output_router_logits": True} if self.router_loss else {}
        scored = self.score(run_model, self.reference.policy, {**call, **router}, mask)
        sums = scored.values.sum(-1)
        chosen_at = torch.nonzero(inputs["label"]).view(-1)
        rejected_at = torch.nonzero(~inputs["label"]).view(-1)
        chosen, rejected = sums.index_select(0, chosen_at), sums.index_select(0, rejected_at)
        with self.reference.ready(run_model) as run_reference:
            reference_strange = self._strange(run_reference, self.reference.scored, inputs)
            scored_reference = self.score(run_reference, self.reference.scored, call, mask, entropy=False)
        reference_sums = scored_reference.values.sum(-1)
        chosen_ratio = chosen - reference_sums.index_select(0, chosen_at)
        rejected_ratio = rejected - reference_sums.index_select(0, rejected_at)
        divergence = (strange - reference_strange).mean().detach().clamp(min=0)
        losses = self._losses(chosen_ratio, rejected_ratio, divergence)
        _log_metrics(scored, mask[:, 1:], chosen_at, rejected_at)
        chosen.nansum(), rejected.nansum()
        loss = losses.nanmean()
        if self.router_loss:
            loss = loss + self.router_loss * scored.outputs.aux_loss
        return loss, scored.outputs

    def _strange(self, run_model: RunModel, model: Any, inputs: Inputs) -> Tensor:
        """Log-probabilities of the mismatched completions, [rows]. The logits are freed when it returns."""
        call: dict[str, Any] = {
            "input_ids": inputs["KL_input_ids"],
            "attention_mask": inputs["KL_attention_mask"],
        }
        if self.settings.trl >= (1, 14):
            call["use_cache"] = False
        with torch.no_grad():
            scored = self.score(run_model, model, call, inputs["KL_completion_mask"], entropy=False)
        return scored.values.sum(-1)

    def _losses(self, chosen: Tensor, rejected: Tensor, divergence: Tensor) -> Tensor:
        """The losses [rows]. Both kinds have the weight 1; the weights do not change memory. The rewards are logged."""
        beta = self.settings.beta
        wanted = 1 - F.sigmoid(beta * (chosen - divergence))
        (beta * chosen.detach()).nansum()
        unwanted = 1 - F.sigmoid(beta * (divergence - rejected))
        (beta * rejected.detach()).nansum()
        return torch.cat((1.0 * wanted, 1.0 * unwanted), 0)


def _log_metrics(scored: Scored, mask: Tensor, chosen_at: Tensor, rejected_at: Tensor) -> None:
    """Entropy, and means of the completions' logits. The rows of each kind are copied, and then their completions."""
    assert scored.entropies is not None
    (scored.entropies * mask).sum()
    if scored.logits is None:
        return
    chosen = scored.logits.detach().index_select(0, chosen_at)
    rejected = scored.logits.detach().index_select(0, rejected_at)
    chosen_mask, rejected_mask = mask.index_select(0, chosen_at), mask.index_select(0, rejected_at)
    chosen[chosen_mask.bool()].mean(-1).sum()
    rejected[rejected_mask.bool()].mean(-1).sum()
