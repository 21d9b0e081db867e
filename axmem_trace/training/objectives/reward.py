"""Outcome reward models. Source: TRL 1.14.1 `trainer/reward_trainer.py` `DataCollatorForPreference`, `compute_loss`.

There is no head over the vocabulary. The head returns one number for each position, and only the last one is used. So
the loss has almost no temporary memory, and the peak is in the backbone, in the backward of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.preference import Preference, completion_rows, halves


class RewardModel(Preference):
    """`reward_model: true`."""

    def make_batch(self, recipe: Recipe, rows: int, row_tokens: int) -> Batch:
        """Chosen rows, then rejected ones; no labels."""
        inputs = completion_rows(recipe, rows, row_tokens)
        del inputs["completion_mask"]
        return Batch(inputs)

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[Tensor, Any]:
        """The loss, a scalar, from logits [2 x pairs, 1]."""
        outputs = run_model(**inputs, use_cache=False)
        chosen, rejected = halves(outputs.logits.squeeze(-1))
        loss = -F.logsigmoid(chosen - rejected).mean()
        if self.settings.centring:
            loss = loss + self.settings.centring * torch.mean((chosen + rejected) ** 2)
        with torch.no_grad():
            outputs.logits.min(), outputs.logits.mean(), outputs.logits.max()
            (chosen > rejected).float().mean()
            (chosen - rejected).mean()
        return loss, outputs
