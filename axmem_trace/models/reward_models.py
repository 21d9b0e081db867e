"""Models that score generated completions, in addition to the trained one: `trl.reward_funcs` may name some.

Source: TRL 1.14.1 `trainer/grpo_trainer.py` `__init__` (`AutoModelForSequenceClassification.from_pretrained(name,
num_labels=1)`, in the checkpoint's dtype, on the host; then `prepare_model(evaluation_mode=True, device_placement=True)`).
Each GPU has the whole model, even if the policy is sharded.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, get_args

from torch import nn

from axmem_trace.models.build import build_model
from axmem_trace.models.reference import as_trl_loads_it
from axmem_trace.recipe.model import Adapter, BaseModel, Dtype, Freezing, Model
from axmem_trace.recipe.objective import Objective
from axmem_trace.recipe.parallel import Parallel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.recipe.run import Checkpointing


def build_reward_models(recipe: Recipe, *, device: str = "meta") -> tuple[nn.Module, ...]:
    """The reward models, frozen and in evaluation mode, in the order of the configuration.

    Args:
        device: as in `build_model`.

    Raises:
        ConfigError: as in `build_model`.
    """
    rollouts = recipe.objective.rollouts
    bases = rollouts.reward_models if rollouts is not None else ()
    return tuple(
        build_model(_recipe_of(recipe, base), device=device).module.requires_grad_(False).eval() for base in bases
    )


def _recipe_of(recipe: Recipe, base: BaseModel) -> Recipe:
    """The recipe of a plain classifier with one output, loaded in the dtype of its checkpoint."""
    plain = replace(
        recipe,
        model=Model(
            base=base, task="sequence-classification", num_labels=1, trust_remote_code=recipe.model.trust_remote_code
        ),
        adapter=Adapter(),
        freezing=Freezing(),
        checkpointing=Checkpointing(),
        objective=Objective(),
        parallel=Parallel(),
        fake_quantisation=None,
    )
    loaded = as_trl_loads_it(plain)
    return replace(loaded, precision=replace(loaded.precision, load_dtype=checkpoint_dtype(base)))


def checkpoint_dtype(base: BaseModel) -> Dtype:
    """The dtype in `config.json`; fp32 if it has none."""
    config: dict[str, Any] = dict(base.config)
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return named if named in get_args(Dtype) else "float32"  # type: ignore[return-value]


def copy_policy(recipe: Recipe, policy: nn.Module) -> nn.Module | None:
    """EBFT's feature network without adapters: a frozen `copy.deepcopy` of the policy. None with adapters, and for other
    methods (axolotl `core/trainers/ebft/trainer.py` `EBFTMixin.__init__`)."""
    features = recipe.objective.features
    if features is None or not features.copy:
        return None
    return deepcopy(policy).requires_grad_(False).eval()


def reward_name(number: int) -> str:
    """The name of a reward model in the report: `reward_model`, `reward_model_2`, ...

    >>> reward_name(0), reward_name(1)
    ('reward_model', 'reward_model_2')
    """
    return "reward_model" if number == 0 else f"reward_model_{number + 1}"
