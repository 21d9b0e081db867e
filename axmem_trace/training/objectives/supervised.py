"""Supervised training: the model gets labels and computes its loss."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.batches.text import make_batch
from axmem_trace.training.objectives.objective import Objective, RunModel


class Supervised(Objective):
    """transformers 5 `trainer.py`, `Trainer.compute_loss`, with axolotl's collators."""

    def __init__(self, built: BuiltModel) -> None:
        self.config = built.config
        self.takes_num_items = accepts_loss_kwargs(built.module)

    def batches(self, recipe: Recipe) -> Sequence[Batch]:
        """Equal ones."""
        batch = recipe.batch
        made = make_batch(recipe, self.config, rows=batch.rows, row_tokens=batch.row_tokens, packed=batch.packed)
        return [made] * batch.gradient_accumulation_steps

    def evaluation_batch(self, recipe: Recipe) -> Batch:
        """A batch of the evaluation's size."""
        evaluation = recipe.evaluation
        return make_batch(
            recipe, self.config, rows=evaluation.rows, row_tokens=evaluation.row_tokens, packed=evaluation.packed
        )

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """The loss is the model's first output."""
        outputs = run_model(**inputs)
        return outputs["loss"] if isinstance(outputs, dict) else outputs[0], outputs


class LogitsMean(Supervised):
    """Training without a loss: backward starts from the mean of the logits (`--assume loss_path=none`)."""

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """The mean, a scalar, of logits [batch, tokens, vocabulary]."""
        outputs = run_model(**inputs)
        return outputs["logits"].mean(), outputs


def accepts_loss_kwargs(model: Any) -> bool:
    """Whether the model's forward takes `num_items_in_batch` (transformers `trainer.py`, `Trainer.__init__`, "Model
    introspection")."""
    base = unwrapped(model)
    declared = getattr(base, "accepts_loss_kwargs", None)
    if declared is not None:
        return bool(declared)
    parameters = inspect.signature(base.forward).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
