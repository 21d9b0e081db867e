"""Trace repeated layers once, with two short models: the shorter one checks the prediction from the longer one.

1. The full model is built and its layers are compared (`models/repeated_layers.py`), then layers are removed. The short
   model is copied for step 3.
2. The short model's recording is divided (`folding/sections.py`): its repeated layers must have equal allocations.
3. A model with one period less is recorded too. The prediction for it must equal its recording, event by event.
4. The missing periods are inserted (`folding/unfold.py`), and their tensors and modules are added to the facts.

If anything could make layers different, `CannotFold` is raised with the reason, and the full model is traced.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from axmem_trace.folding.facts import unfold_facts
from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.model_facts import ModelFacts
from axmem_trace.models.repeated_layers import (
    RepeatedLayers,
    find_repetition,
    keep_layers,
    list_of_layers,
    renumber,
)
from axmem_trace.recipe.recipe import Recipe


class Folding:
    """Removes repeated layers from a model while it is built, and completes its facts."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._found: RepeatedLayers | None = None
        self._num_parameters = 0
        self._copy: Any = None
        self._completed: list[tuple[ModelFacts, ModelFacts]] = []

    @property
    def repetition(self) -> Repetition | None:
        """The layers to remove; None: no model has been shortened yet."""
        return None if self._found is None else self._found.repetition

    @property
    def _known(self) -> Repetition:
        assert self._found is not None, "no model has been shortened yet"
        return self._found.repetition

    def make(self, model_class: Any, config: Any) -> Any:
        """Create a model of this class, with all its layers."""
        return model_class(config)

    def shorten(self, model: nn.Module) -> None:
        """Removes repeated layers from a model that `make` has just created.

        Raises:
            CannotFold: its layers are not equal.
        """
        self._num_parameters = _count_parameters(model, lambda name: 1)
        self._found = find_repetition(model)
        _refuse_targets(model, self.recipe, self._known)
        keep_layers(model, self._known)
        self._copy = _copy_if_possible(model)
        self._finish(model)

    def _finish(self, model: nn.Module) -> None:
        assert self._found is not None, "layers have been removed"
        renumber(model, self._known, self._found.numbers)
        if _count_parameters(model, self.represents) != self._num_parameters:
            raise CannotFold("the remaining layers do not represent all parameters of the model")

    def represents(self, name: str) -> int:
        """The number of modules or tensors of the whole model that this one of the short model represents."""
        return self._known.represents(name)

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """The facts of the whole model, from those of the short one."""
        whole = unfold_facts(facts, self._known)
        self._completed.append((facts, whole))
        return whole

    def with_one_period_less(self) -> Folding:
        """The folding of the shorter model that checks this one. It uses the copy, so it can build only one model."""
        return _ShorterFolding(self)


class _ShorterFolding(Folding):
    """Removes one period more than another folding. It begins with a copy of that folding's short model."""

    def __init__(self, longer: Folding) -> None:
        super().__init__(longer.recipe)
        assert longer._found is not None, "the longer model was shortened"
        repetition = longer._known
        self._longer = repetition
        self._found = replace(longer._found, repetition=repetition.with_periods(repetition.periods - 1))
        self._num_parameters = longer._num_parameters
        self._copy, longer._copy = longer._copy, None
        self._completed = longer._completed
        self._present: list[int] | None = None

    def make(self, model_class: Any, config: Any) -> Any:
        """The copy, or a new model if no copy could be made."""
        if self._copy is None:
            return model_class(config)
        model, self._copy, self._present = self._copy, None, self._longer.kept
        return model

    def shorten(self, model: nn.Module) -> None:
        """Removes the layers that the longer model does not have, and one more period."""
        keep_layers(model, self._known, self._present)
        self._finish(model)

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """The facts of the whole model, completed by the longer folding if its facts without one period equal these."""
        for longer, whole in self._completed:
            if unfold_facts(longer, replace(self._longer, missing=-1)) == facts:
                return whole
        return unfold_facts(facts, self._known)


class NoFolding(Folding):
    """The whole model, unchanged."""

    def __init__(self) -> None:
        self._found = None

    def shorten(self, model: nn.Module) -> None:
        """Leaves the model unchanged."""

    def represents(self, name: str) -> int:
        """1: each module or tensor represents only itself."""
        return 1

    def complete(self, facts: ModelFacts) -> ModelFacts:
        """Returns the facts unchanged, because they are complete."""
        return facts


def _copy_if_possible(model: nn.Module) -> Any:
    """A copy of a model that was just created. None: a part of it can't be copied, so the model has to be created again."""
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError, AttributeError):  # locks, tensors of a graph, ... can't be copied
        return None


def _count_parameters(model: nn.Module, times: Callable[[str], int]) -> int:
    return sum(parameter.numel() * times(name) for name, parameter in model.named_parameters())


def _refuse_targets(model: nn.Module, recipe: Recipe, repetition: Repetition) -> None:
    """Raises `CannotFold` if the adapter's targets are not the same in all layers.

    peft compares the names in a list with the end of a module's name. It uses a text as a regular expression
    (`tuners_utils.py` `check_target_module_exists`).
    """
    for targets in (recipe.adapter.target_modules, recipe.adapter.exclude_modules):
        if isinstance(targets, str):
            pattern = re.compile(targets)
            _refuse_selection(model, repetition, lambda name, pattern=pattern: bool(pattern.fullmatch(name)))  # type: ignore[misc]
        else:
            for each in targets:
                _refuse_selection(model, repetition, lambda name, each=each: f".{name}".endswith(f".{each}"))  # type: ignore[misc]


def _refuse_selection(model: nn.Module, repetition: Repetition, selects: Callable[[str], bool]) -> None:
    """Raises `CannotFold` if `selects` chooses different modules in repeated layers, or depends on a layer's number."""
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
