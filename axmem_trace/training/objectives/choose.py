"""Which objective a recipe trains with."""

from __future__ import annotations

from axmem_trace.models.built import BuiltModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.objectives.diffusion import Diffusion
from axmem_trace.training.objectives.distillation import Distillation
from axmem_trace.training.objectives.objective import Objective
from axmem_trace.training.objectives.supervised import LogitsMean, Supervised


def choose_objective(recipe: Recipe, built: BuiltModel, recorder: Recorder) -> Objective:
    """The training method that the recipe asks for."""
    if recipe.loss.path == "diffusion":
        return Diffusion(built, recorder)
    if recipe.loss.path == "none":
        return LogitsMean(built)
    if recipe.loss.teacher_tokens:
        return Distillation(built)
    return Supervised(built)
