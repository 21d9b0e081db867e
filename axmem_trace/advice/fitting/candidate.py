"""`Candidate`: a kind of change that may save memory, described as data, with the keys that it sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from axmem_trace.recipe.recipe import Recipe


class Grade(IntEnum):
    """The cost of a change, from the gentlest to the hardest. The grade of a set is that of the hardest change in
    it."""

    FREE = 0
    """No known cost: the same results except for rounding, at about the same speed."""
    SLOWER = 1
    """The same results except for rounding; steps take longer."""
    HOST = 2
    """The same results; data moves between host and card in each step, and host memory is needed."""
    NUMERIC = 3
    """The optimizer calculates with fewer bits."""
    GPUS = 4
    """More cards."""
    LEARNING = 5
    """The model learns something different. It is only used if the user allows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """A configuration before a change.

    Attributes:
        values: the values as the user wrote them, including `--set`.
        recipe: the recipe that axolotl's rules make of these values.
        plugin_names: the full name of each of axolotl's plugins, by its package.
        num_gpus_is_open: True if the user did not give the number of GPUs.
    """

    values: Mapping[str, Any]
    recipe: Recipe
    plugin_names: Mapping[str, str]
    num_gpus_is_open: bool = True

    def with_plugin(self, package: str) -> dict[str, Any]:
        """The key `plugins` with one of axolotl's plugins added; empty if the plugin is in the list already."""
        listed = self.values.get("plugins") or []
        listed = [listed] if isinstance(listed, str) else list(listed)
        name = self.plugin_names.get(package, "")
        package_path = name.rpartition(".")[0]
        if not name or any(str(each) == name or str(each).startswith(f"{package_path}.") for each in listed):
            return {}
        return {"plugins": [*listed, name]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Keys and their new values.

    Attributes:
        settings: top-level keys of the configuration.
        cost: the cost in words, if it is not that of the candidate.
        allow: the word of `--allow` that this change needs, although the candidate needs none.
        num_gpus: the new number of GPUs; 0: it is not changed.
        environment: environment variables, which a configuration can't set.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: str = ""
    allow: str = ""
    num_gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One kind of change.

    Attributes:
        name: one word, for `explain`.
        about: its explanation: the docstring of its file.
        cost: its cost in words.
        grade: its cost as a number, to compare candidates.
        group: a set has at most one change of each group.
        propose: returns the changes for a configuration; none if the configuration already has them. Several changes
            are alternatives or steps.
        steps: whether the changes are steps: each saves more and costs more than the one before. If not, they are
            alternatives.
        allow: the word of `--allow` that it needs. Without this word, the candidate is only shown.
        slow: whether its estimates take several times as long as others. It is left out if a gentler set fits.
    """

    name: str
    about: str
    cost: str
    grade: Grade
    group: str
    propose: Callable[[Situation], Iterable[Change]]
    steps: bool = False
    allow: str = ""
    slow: bool = False
