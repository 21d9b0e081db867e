"""`Candidate`: a change that may save memory, as data, with the keys that it sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from axmem_trace.recipe.recipe import Recipe


class Grade(IntEnum):
    """The price of a change, from the gentlest to the hardest. A set is as hard as the hardest change in it."""

    FREE = 0
    """Nothing known: the same results except for rounding, at about the same speed."""
    SLOWER = 1
    """The same results except for rounding; steps take longer."""
    HOST = 2
    """The same results; data moves between host and card in each step, and host memory is needed."""
    NUMERIC = 3
    """The optimizer calculates with fewer bits."""
    GPUS = 4
    """More cards."""
    LEARNING = 5
    """The run learns something else; only if it is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """A configuration before a change.

    Attributes:
        values: as the user wrote them, `--set` included.
        recipe: what axolotl makes of them.
        plugin_names: package of each of axolotl's plugins -> its full name.
        num_gpus_is_open: the user did not give the number of GPUs.
    """

    values: Mapping[str, Any]
    recipe: Recipe
    plugin_names: Mapping[str, str]
    num_gpus_is_open: bool = True

    def with_plugin(self, package: str) -> dict[str, Any]:
        """The key `plugins` with one of axolotl's plugins in it; empty if it is listed already."""
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
        cost: in words, if it is not the candidate's.
        allow: the word of `--allow` that it needs, if the candidate needs none.
        num_gpus: the number of GPUs; 0: as it is.
        environment: variables of the environment, which no configuration can set.
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
        about: what it does; its file's docstring.
        cost: what it costs, in words.
        grade: the same, to compare.
        group: of each group, a set has one change.
        propose: the changes for a configuration; none if it has that already. Several are alternatives, or steps.
        steps: the changes are steps, each saves more and costs more than the one before; else they are alternatives.
        allow: the word of `--allow` without which it is only shown.
        slow: its estimates take several times as long as others; left out if a gentler set fits.
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
