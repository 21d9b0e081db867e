"""Evaluation as the Hugging Face Trainer runs it (transformers 5 `trainer.py`, `evaluation_loop`, `prediction_step`)."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.batches.batch import place_batch, place_number
from axmem_trace.training.generation import generate
from axmem_trace.training.objectives import Objective, RunModel


def evaluate(recipe: Recipe, model: Any, objective: Objective, run_model: RunModel, recorder: Recorder) -> None:
    """Runs two batches. If logits are gathered, the outputs of the first batch are alive while the second runs."""
    recorder.mark("eval", 0)
    model.eval()
    kept: Any = None
    evaluation = recipe.evaluation
    for _ in range(2):
        with recorder.paused():
            batch = objective.evaluation_batch(recipe)
        inputs = place_batch(recorder, batch)
        num_items = place_number(recorder, evaluation.rows * evaluation.row_tokens)
        if objective.takes_num_items:
            inputs["num_items_in_batch"] = num_items
        with torch.no_grad():
            loss, outputs = objective.loss(run_model, inputs)
            loss.detach().mean()
        if evaluation.gathers_logits:
            kept = outputs
        del outputs, inputs
    del kept
    if evaluation.generated_rows:
        generate(run_model, model, recorder, rows=evaluation.generated_rows, tokens=evaluation.generated_tokens)
    model.train()
