"""Supervised training: the model gets labels and computes its loss."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.batches.divided import divide_rows
from axmem_trace.training.batches.text import make_batch
from axmem_trace.training.objectives.objective import Objective, RunModel


class Supervised(Objective):
    """transformers 5 `trainer.py`, `Trainer.compute_loss`, with axolotl's collators."""

    def __init__(self, recipe: Recipe, built: BuiltModel) -> None:
        self.config, self._context = built.config, recipe.parallel.context
        self._rank = _place(recipe)
        self.takes_num_items = accepts_loss_kwargs(built.module)

    def batches(self, recipe: Recipe) -> Sequence[Batch]:
        """Equal ones."""
        batch = recipe.batch
        made = make_batch(recipe, self.config, rows=batch.rows, row_tokens=batch.row_tokens, packed=batch.packed)
        return [_on_rank(recipe, made)] * batch.gradient_accumulation_steps

    def evaluation_batch(self, recipe: Recipe) -> Batch:
        """A batch of the evaluation's size."""
        evaluation = recipe.evaluation
        made = make_batch(
            recipe, self.config, rows=evaluation.rows, row_tokens=evaluation.row_tokens, packed=evaluation.packed
        )
        return _on_rank(recipe, made)

    def _divided(self, inputs: Inputs) -> Inputs:
        """Whole rows that were copied to the GPU are divided before the model's forward."""
        if self._context.size == 1 or self._context.in_collator:
            return inputs
        return divide_rows(inputs, self._context, self._rank)

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """The loss is the model's first output."""
        outputs = run_model(**self._divided(inputs))
        return outputs["loss"] if isinstance(outputs, dict) else outputs[0], outputs


def _place(recipe: Recipe) -> int:
    """The rank, counted without the axes inside the context axis (experts); 0 if rows are not divided."""
    return torch.distributed.get_rank() // recipe.parallel.mesh.expert if recipe.parallel.context.size > 1 else 0


def _on_rank(recipe: Recipe, batch: Batch) -> Batch:
    """The batch, or this rank's part of its rows."""
    context = recipe.parallel.context
    if context.size == 1 or not context.in_collator:
        return batch
    return replace(batch, inputs=divide_rows(batch.inputs, context, _place(recipe)))


class LogitsMean(Supervised):
    """Training without a loss: backward starts from the mean of the logits (`--assume loss_path=none`)."""

    def loss(self, run_model: RunModel, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """The mean, a scalar, of logits [batch, tokens, vocabulary]."""
        outputs = run_model(**self._divided(inputs))
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
