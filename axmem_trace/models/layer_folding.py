"""Trace repeated layers once, with two short models: the longer one checks what is predicted from the shorter one.

1. The full model is made and its layers are compared (`models/repeated_layers.py`), then layers are removed.
2. The short model's recording is divided (`folding/sections.py`): its repeated layers must have allocated the same.
3. A model with one more period is recorded too. The prediction for it must equal its recording, event by event.
4. The missing periods are inserted (`folding/unfold.py`), and their tensors and modules are added to the facts.

If anything could make layers different, `CannotFold` is raised with the reason, and the full model is traced.
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
    """Removes repeated layers from a model while it is built, and completes its facts.

    Args:
        repetition: which layers to leave out; None: determined from the first model.
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
            CannotFold: its layers are not equal.
        """
        whole = _count_parameters(model, lambda name: 1)
        if self.repetition is None:
            self.repetition = find_repetition(model)
            _refuse_targets(model, self.recipe, self.repetition)
        shorten(model, self.repetition)
        if _count_parameters(model, self.represents) != whole:
            raise CannotFold("the remaining layers do not represent all parameters of the model")

    def represents(self, name: str) -> int:
        """How many modules or tensors of the whole model one of the short model represents."""
        return self._known.represents(name)

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """The facts of the whole model, from those of the short one."""
        return unfold_facts(facts, self._known)


class NoFolding(Folding):
    """The whole model, unchanged."""

    def __init__(self) -> None:
        self.repetition = None

    def shorten(self, model: nn.Module) -> None:
        """Leaves the model unchanged."""

    def represents(self, name: str) -> int:
        """Each for itself."""
        return 1

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """They are complete."""
        return facts


def _count_parameters(model: nn.Module, times: Callable[[str], int]) -> int:
    return sum(parameter.numel() * times(name) for name, parameter in model.named_parameters())


def _refuse_targets(model: nn.Module, recipe: Recipe, repetition: Repetition) -> None:
    """Raises `CannotFold` if the adapter's targets are not the same in all layers.

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
    """Raises `CannotFold` if a rule by names selects different parts of repeated layers, or uses their number."""
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
