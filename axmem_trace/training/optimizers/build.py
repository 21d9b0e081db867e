"""`build_optimizer`: makes an optimizer that runs on meta, from the name in a recipe."""

from __future__ import annotations

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.optimizers.meta_as_cuda import meta_as_cuda
from axmem_trace.training.optimizers.names import ALIASES, canonical_name, note_on_name
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.table import BUILDERS
from axmem_trace.training.optimizers.traced import TracedOptimizer


def known_optimizers() -> tuple[str, ...]:
    """Every optimizer name that can be estimated, including aliases."""
    return tuple(sorted(BUILDERS.keys() | ALIASES.keys()))


def build_optimizer(recipe: Recipe, module: nn.Module) -> TracedOptimizer:
    """The optimizer of the run, for the trainable parameters of `module`.

    Args:
        recipe: `recipe.optimizer` names the optimizer; adapter and `optimizer.extra` determine its parameter groups.
        module: the model to train, with its adapters, on meta.

    Raises:
        ConfigError: an unknown name, arguments that the library refuses, or nothing to train.
    """
    name = canonical_name(recipe.optimizer.name, frozenset(BUILDERS))
    trains = any(parameter.requires_grad for parameter in module.parameters())
    if not trains and not getattr(module, "_require_grads_hooks", None):  # with them, backward still runs
        raise ConfigError(
            "nothing to train: no parameter requires a gradient",
            key="optimizer",
            value=name,
            remedy="check `adapter` and `unfrozen_parameters`",
        )
    request = Request(recipe=recipe, module=module, name=name, notes=note_on_name(name))
    with meta_as_cuda(), torch.no_grad():
        return BUILDERS[name](request)
