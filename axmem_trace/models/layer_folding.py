"""A layer that repeats is traced once: two short models, of which the longer one proves what the shorter one predicts.

1. The model is made in full and its layers are compared (`models/repeated_layers.py`), then it is cut short.
2. The short model's recording is taken apart (`folding/sections.py`): the layers that were kept must have done the same.
3. A model with one period more is recorded too. The prediction for it must be what was recorded, event by event.
4. The missing periods are put in (`folding/unfold.py`), and so are their tensors and modules in the facts.

Whatever could tell layers apart stops this, and the model is traced in full: `CannotFold` says what it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from axmem_trace.folding.facts import unfold_facts
from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.model_facts import ModelFacts
from axmem_trace.models.repeated_layers import find_repetition, list_of_layers, shorten
from axmem_trace.recipe.recipe import Recipe


class Folding:
    """What cuts a model short while it is built, and completes what is said of it.

    Args:
        repetition: which layers to leave out; None: found in the first model that is shown.
    """

    def __init__(self, recipe: Recipe, repetition: Repetition | None = None) -> None:
        self.recipe = recipe
        self.repetition = repetition

    @property
    def _known(self) -> Repetition:
        assert self.repetition is not None, "no model has been cut yet"
        return self.repetition

    def shorten(self, model: nn.Module) -> None:
        """Leaves repeated layers out of a model that its class has just made.

        Raises:
            CannotFold: its layers are not alike.
        """
        whole = _count_parameters(model, lambda name: 1)
        if self.repetition is None:
            self.repetition = find_repetition(model)
            _refuse_targets(model, self.recipe, self.repetition)
        shorten(model, self.repetition)
        if _count_parameters(model, self.stands_for) != whole:
            raise CannotFold("the layers that are left do not stand for all parameters of the model")

    def stands_for(self, name: str) -> int:
        """How many modules or tensors of the whole model one of the short model stands for."""
        return self._known.stands_for(name)

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """The facts of the whole model, from those of the short one."""
        return unfold_facts(facts, self._known)


class NoFolding(Folding):
    """The whole model, as it is."""

    def __init__(self) -> None:
        self.repetition = None

    def shorten(self, model: nn.Module) -> None:
        """Leaves the model as it is."""

    def stands_for(self, name: str) -> int:
        """Each for itself."""
        return 1

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """They are complete."""
        return facts


def _count_parameters(model: nn.Module, times: Callable[[str], int]) -> int:
    return sum(parameter.numel() * times(name) for name, parameter in model.named_parameters())


def _refuse_targets(model: nn.Module, recipe: Recipe, repetition: Repetition) -> None:
    """Raises `CannotFold` where the adapter's targets are not the same in all layers.

    peft matches a list's names as endings, and a text as a regular expression (`tuners_utils.py`
    `check_target_module_exists`).
    """
    for targets in (recipe.adapter.target_modules, recipe.adapter.exclude_modules):
        if isinstance(targets, str):
            pattern = re.compile(targets)
            _refuse_selection(model, repetition, lambda name, pattern=pattern: bool(pattern.fullmatch(name)))  # type: ignore[misc]
        else:
            for each in targets:
                _refuse_selection(model, repetition, lambda name, each=each: f".{name}".endswith(f".{each}"))  # type: ignore[misc]


def _refuse_selection(model: nn.Module, repetition: Repetition, selects: Callable[[str], bool]) -> None:
    """Raises `CannotFold` where a rule by names picks different parts of repeated layers, or picks by their number."""
    layers = list_of_layers(model, repetition)
    inside = [{name for name, _ in layer.named_modules()} for layer in layers]

    def picked(number: int, names: set[str]) -> set[str]:
        return {name for name in names if selects(f"{repetition.path}.{number}.{name}".rstrip("."))}

    repeated_end = repetition.last + repetition.period * repetition.missing
    for number in range(repetition.first, repeated_end - repetition.period):
        again = number + repetition.period
        if picked(number, inside[number]) != picked(again, inside[again]):
            raise CannotFold("the adapter's targets name single layers")
    for number, original in enumerate(repetition.kept):
        if picked(number, inside[original]) != picked(original, inside[original]):
            raise CannotFold("the adapter's targets name single layers")
