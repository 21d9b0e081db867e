"""The common parts of TRL's preference trainers: batches of rows with a completion, helpers, router loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.batches.batch import Batch, Inputs
from axmem_trace.training.batches.text import make_text_batch
from axmem_trace.training.objectives.objective import Objective
from axmem_trace.training.objectives.reference import ReferenceModel, make_reference
from axmem_trace.training.objectives.scoring import Scorer, choose_scorer

ROUTER_LOSS_BEFORE_1_14 = 0.001
"""TRL 1.9.0 and 1.13.0 `dpo_config.py`, `router_aux_loss_coef`."""


class Preference(Objective):
    """A trainer of TRL: it computes its loss from logits, and the loop divides it by the number of micro-batches
    (`model_accepts_loss_kwargs = False` in each of them)."""

    def __init__(self, recipe: Recipe, built: BuiltModel) -> None:
        self.settings = recipe.objective
        self.score: Scorer = choose_scorer(self.settings, recipe.precision)
        self.reference: ReferenceModel = make_reference(recipe, built)
        self.redirects = self.settings.chunked and recipe.parallel.engine != "none"
        """Without logits, the backbone and the head are called directly. With several ranks, this happens inside the
        wrapper."""
        self.router_loss = router_loss_coefficient(built.config, self.settings.trl)

    def batches(self, recipe: Recipe) -> Sequence[Batch]:
        """Equal batches, in which each row has the largest possible length."""
        batch = recipe.batch
        return [self.make_batch(recipe, batch.rows, batch.row_tokens)] * batch.gradient_accumulation_steps

    def evaluation_batch(self, recipe: Recipe) -> Batch:
        """A batch of the evaluation's size."""
        return self.make_batch(recipe, recipe.evaluation.rows, recipe.evaluation.row_tokens)

    def make_batch(self, recipe: Recipe, rows: int, row_tokens: int) -> Batch:
        """The batch of the trainer's collator, with `rows` rows of `row_tokens` tokens."""
        raise NotImplementedError

    def extra_models(self) -> dict[str, Any]:
        """The reference, if it is a separate model."""
        return {} if self.reference.model is None else {"reference": self.reference.model}


def completion_rows(recipe: Recipe, rows: int, row_tokens: int) -> Inputs:
    """`input_ids`, `attention_mask` and `completion_mask`, int64 [rows, row_tokens]: a prompt, then the completion.

    Every row is full, except that the last is one token shorter: the longest row determines the length of the batch,
    and others are padded.
    """
    inputs = make_text_batch(recipe, rows=rows, row_tokens=row_tokens, packed=False)
    del inputs["labels"]
    mask = torch.zeros_like(inputs["input_ids"])
    mask[:, row_tokens - min(recipe.objective.completion_tokens, row_tokens - 1) :] = 1
    inputs["completion_mask"] = mask * inputs["attention_mask"]
    return inputs


def router_loss_coefficient(config: Any, trl: tuple[int, int]) -> float:
    """The factor of the routers' balancing loss; 0 without such a loss. It is the model's own coefficient, because
    axolotl sets none (TRL 1.14.1 `trainer/dpo_trainer.py`, `aux_loss_enabled`). Before TRL 1.14, it is always TRL's
    default."""
    text_config = config.get_text_config()
    if getattr(text_config, "output_router_logits", None) is None:
        return 0.0
    if trl < (1, 14):
        return ROUTER_LOSS_BEFORE_1_14
    return float(getattr(text_config, "router_aux_loss_coef", 0.0) or 0.0)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen rows and the rejected rows; both are views."""
    chosen, rejected = values.chunk(2, dim=0)
    return chosen, rejected
