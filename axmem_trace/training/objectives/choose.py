"""Chooses the training objective of a recipe."""

from __future__ import annotations

from axmem_trace.models.built import BuiltModel
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.recipe.objective import Objective as Settings
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.objectives.asynchronous import AsynchronousGroupRelative
from axmem_trace.training.objectives.diffusion import Diffusion
from axmem_trace.training.objectives.direct_preference import DirectPreference
from axmem_trace.training.objectives.distillation import Distillation
from axmem_trace.training.objectives.energy_based import AsynchronousEnergyBased, EnergyBased
from axmem_trace.training.objectives.group_relative import GroupRelative
from axmem_trace.training.objectives.kahneman_tversky import KahnemanTversky
from axmem_trace.training.objectives.objective import Objective
from axmem_trace.training.objectives.odds_ratio import OddsRatio, SimplePreference
from axmem_trace.training.objectives.preference import Preference
from axmem_trace.training.objectives.reward import RewardModel
from axmem_trace.training.objectives.supervised import LogitsMean, Supervised

_TRAINERS: dict[str, type[Preference]] = {
    "dpo": DirectPreference,
    "ipo": DirectPreference,
    "simpo": SimplePreference,
    "orpo": OddsRatio,
    "kto": KahnemanTversky,
    "reward": RewardModel,
}
"""TRL's trainers by `Objective.method`. Process reward models are supervised: the model computes the loss."""


def choose_objective(recipe: Recipe, built: BuiltModel, recorder: Recorder) -> Objective:
    """The training method of the recipe."""
    if recipe.objective.rollouts is not None:
        return _checked(_choose_rollouts(recipe.objective)(recipe, built, recorder), recorder)
    kind = _TRAINERS.get(recipe.objective.method)
    if kind is not None:
        return _checked(kind(recipe, built), recorder)
    if recipe.loss.path == "diffusion":
        return Diffusion(recipe, built, recorder)
    if recipe.loss.path == "none":
        return LogitsMean(recipe, built)
    if recipe.loss.teacher_tokens:
        return Distillation(recipe, built)
    return Supervised(recipe, built)


def _choose_rollouts(settings: Settings) -> type[GroupRelative]:
    """The class for rollouts. Two differences may be combined: rewards from features, and axolotl's asynchronous
    trainer."""
    assert settings.rollouts is not None
    if settings.features is None:
        return AsynchronousGroupRelative if settings.rollouts.asynchronous else GroupRelative
    return AsynchronousEnergyBased if settings.rollouts.asynchronous else EnergyBased


def _checked(objective: Preference, recorder: Recorder) -> Preference:
    """Adds a note that the routers' loss is part of the step. Without logits this loss can't be computed, and TRL stops
    with an error for DPO.

    Source: TRL 1.14.1 `trainer/dpo_trainer.py`, "load-balancing auxiliary loss".
    """
    settings = objective.settings
    if not objective.router_loss or settings.method == "reward":
        return objective
    if settings.chunked and settings.rollouts is None:
        problem = (
            "TRL stops: the routers' balancing loss of this model needs the logits that dpo_use_liger_kernel avoids"
        )
        recorder.notes.append(
            RefusalNote(key="dpo_use_liger_kernel", text=problem, remedy="set `dpo_use_liger_kernel: false`")
        )
        objective.router_loss = 0.0
        return objective
    text = (
        "TRL adds the routers' balancing loss to this training although no key requests it: the router logits of all layers "
        "are kept and joined"
    )
    recorder.notes.append(Note(kind="warning", key="rl", text=text))
    return objective
