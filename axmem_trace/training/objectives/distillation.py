"""Distillation from a server: a batch also contains the teacher's tokens and probabilities.

The loss itself is installed in the model's forward (`kernels/losses/logit_losses.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.objectives.objective import RunModel
from axmem_trace.training.objectives.supervised import Supervised

TEACHER_TENSORS = {
    "target_token_ids": torch.int64,
    "target_logprobs": torch.float32,
    "target_mask": torch.int64,
}
"""Fields of the teacher's most likely tokens at each position (axolotl 0.19 `integrations/kd/collator.py`)."""


class Distillation(Supervised):
    """axolotl 0.19 `integrations/kd/trainer.py`, `AxolotlKDTrainer.compute_loss`."""

    def batches(self, recipe: Recipe) -> Sequence[Batch]:
        """The batches; each has the teacher's tensors, [rows, row_tokens, teacher_tokens]."""
        shape = (recipe.batch.rows, recipe.batch.row_tokens, recipe.loss.teacher_tokens)
        teacher = {name: torch.zeros(shape, dtype=dtype) for name, dtype in TEACHER_TENSORS.items()}
        return [replace(batch, inputs={**batch.inputs, **teacher}) for batch in super().batches(recipe)]

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """The loss. The model does not get the teacher's tensors; they stay in the batch."""
        given = {name: value for name, value in inputs.items() if name not in TEACHER_TENSORS}
        return super().loss(run_model, given)
