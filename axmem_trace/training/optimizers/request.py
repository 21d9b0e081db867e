"""`Request`: the hyperparameters and parameter groups that an optimizer's builder reads from the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, NoteKind, Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.optimizers.groups import make_param_groups
from axmem_trace.training.optimizers.traced import TracedOptimizer

ParamGroups = list[dict[str, Any]]


@dataclass
class Request:
    """The optimizer of a recipe, and the module whose trainable parameters it updates.

    `name` is the canonical name, not an alias. Hyperparameters that do not change memory keep the library's defaults.
    """

    recipe: Recipe
    module: nn.Module
    name: str
    notes: Notes = field(default_factory=Notes)

    @property
    def args(self) -> Mapping[str, Any]:
        """`optim_args`, parsed."""
        return self.recipe.optimizer.args

    @property
    def extra(self) -> Mapping[str, Any]:
        """Configuration keys other than `optim_args`, under axolotl's names: `adam_beta1`, `qgalore_rank`, ..."""
        return self.recipe.optimizer.extra

    @property
    def lr(self) -> float:
        """The base learning rate."""
        return self.recipe.optimizer.learning_rate

    @property
    def weight_decay(self) -> float:
        """The weight decay of the groups that decay."""
        return self.recipe.optimizer.weight_decay

    @cached_property
    def adam_kwargs(self) -> dict[str, Any]:
        """`betas` and `eps` from `adam_beta1`, `adam_beta2`, `adam_epsilon`; transformers' defaults if they are not
        set."""
        betas = (float(self.extra.get("adam_beta1") or 0.9), float(self.extra.get("adam_beta2") or 0.999))
        return {"betas": betas, "eps": float(self.extra.get("adam_epsilon") or 1e-8)}

    @cached_property
    def groups(self) -> ParamGroups:
        """The parameter groups that the Trainer passes to the optimizer."""
        return make_param_groups(self.recipe, self.module, custom=self.name in CUSTOM_NAMES)

    @property
    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters and their names, in the module's order."""
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]

    def arg(self, key: str, default: Any, convert: Callable[[Any], Any]) -> Any:
        """`optim_args[key]` converted, or the default.

        Raises:
            ConfigError: the value cannot be converted.
        """
        if key not in self.args:
            return default
        try:
            return convert(self.args[key])
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self.name} cannot use {key}={self.args[key]!r}", key="optim_args", value=self.args[key]
            ) from error

    def note(self, kind: NoteKind, text: str, key: str = "optimizer") -> None:
        """Adds a note to the report."""
        self.notes.append(Note(kind=kind, key=key, text=text))

    def traced(self, optimizer: torch.optim.Optimizer, **kwargs: Any) -> TracedOptimizer:
        """The builder's result with one optimizer, and the notes so far."""
        return TracedOptimizer(name=self.name, module=self.module, optimizers=[optimizer], notes=self.notes, **kwargs)

    def hooked(self, optimizers: Sequence[torch.optim.Optimizer], **kwargs: Any) -> TracedOptimizer:
        """The builder's result if backward hooks run the optimizers and free the gradients."""
        return TracedOptimizer(
            name=self.name,
            module=self.module,
            optimizers=(),
            hooked=optimizers,
            notes=self.notes,
            releases_gradients=True,
            **kwargs,
        )


CUSTOM_NAMES = frozenset(
    """
    optimi_adamw ao_adamw_4bit ao_adamw_8bit ao_adamw_fp8 adopt_adamw adamc came_pytorch muon dion sinkgd polora
    flash_adamw flash_adam flash_sgd flash_sgdw flash_lion q_galore_adamw8bit
    """.split()
)
"""Optimizers that axolotl builds itself, without transformers (utils/schemas/enums.py, `CustomSupportedOptimizers`)."""

Builder = Callable[[Request], TracedOptimizer]
"""Builds the optimizer of a request. `table.py` has a builder for each name."""


def to_bool(value: Any) -> bool:
    """Converts a value of `optim_args`, which is a text or a YAML boolean (transformers/utils/generic.py, `strtobool`).

    Raises:
        ValueError: the text is not a truth value.
    """
    text = str(value).lower()
    if text in {"y", "yes", "t", "true", "on", "1"}:
        return True
    if text in {"n", "no", "f", "false", "off", "0"}:
        return False
    raise ValueError(f"{value!r} is not a truth value")
