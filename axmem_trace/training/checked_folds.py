"""Which foldings were checked in this process: another number of tokens, or another card, needs no second model.

What is checked with a model that is one period longer does not depend on the number of tokens, as long as everything but
sizes is the same: which events follow each other, in which layers, and which sizes outside of layers grow with each
period. Every recording is still made and divided, so that nothing that is kept can make a size wrong.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from axmem_trace.folding.repetition import Repetition
from axmem_trace.folding.sections import EventLayers
from axmem_trace.ledger import Ledger, same_events
from axmem_trace.model_facts import ModelFacts
from axmem_trace.notes import Note
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Gpu, Recipe

MOST_KEPT = 24
"""The checks of the latest recipes; each takes about a megabyte."""


@dataclass(frozen=True, kw_only=True)
class CheckedFold:
    """A short model's recording and what its check against a longer model found.

    Attributes:
        recipe: of the run; `rank`: which one was recorded.
        ledger, layers, facts, notes: of the short model.
        growth: by how many bytes allocations outside of layers grow with each period, by position in the ledger.
    """

    recipe: Recipe
    rank: int | None
    repetition: Repetition
    ledger: Ledger
    layers: EventLayers
    facts: ModelFacts
    notes: tuple[Note, ...]
    growth: Mapping[int, int] = field(default_factory=dict)

    def covers(self, other: CheckedFold) -> bool:
        """Whether the other recording differs from this one in nothing but tokens and sizes in step with them."""
        return (
            self.rank == other.rank
            and self.repetition == other.repetition
            and without_tokens(self.recipe) == without_tokens(other.recipe)
            and self.facts == other.facts
            and _names(self.notes) == _names(other.notes)
            and same_events(self.ledger, other.ledger)
            and self.layers == other.layers
            and all(self.ledger.columns.nbytes[index] == other.ledger.columns.nbytes[index] for index in self.growth)
        )


_checked: list[CheckedFold] = []


def known_growth(recording: CheckedFold) -> Mapping[int, int] | None:
    """The growth that the check of such a recording found, if there was one; None: it has to be checked."""
    return next((each.growth for each in reversed(_checked) if each.covers(recording)), None)


def remember(checked: CheckedFold) -> None:
    """Keeps a check for later recordings."""
    _checked.append(checked)
    del _checked[:-MOST_KEPT]


def kept() -> tuple[CheckedFold, ...]:
    """All checks that are kept, the latest last."""
    return tuple(_checked)


def pack(checks: Sequence[CheckedFold]) -> bytes:
    """Checks for `unpack` in another process."""
    packed = io.BytesIO()
    _Pickler(packed, pickle.HIGHEST_PROTOCOL).dump(tuple(checks))
    return packed.getvalue()


def unpack(packed: bytes) -> None:
    """Keeps the checks that a process of our own packed."""
    for checked in pickle.loads(packed):
        remember(checked)


class _Pickler(pickle.Pickler):
    """It packs the read-only mappings of a recipe too."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, MappingProxyType):
            return _make_read_only, (dict(value),)
        return NotImplemented


def _make_read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def forget_all() -> None:
    """As in a new process."""
    _checked.clear()


def without_tokens(recipe: Recipe) -> Recipe:
    """The recipe with the shape of its batches, the card, and what only the report shows, left out."""
    return replace(
        recipe,
        name="",
        batch=replace(recipe.batch, rows=1, row_tokens=1, samples_per_row=1),
        lengths=RowLengths(),
        evaluation=replace(recipe.evaluation, rows=1, row_tokens=1),
        gpu=Gpu(),
        objective=replace(recipe.objective, prompt_tokens=0, completion_tokens=0),
        reasons={},
        notes=(),
        written={},
        alternatives=(),
    )


def _names(notes: tuple[Note, ...]) -> list[tuple[str, str]]:
    return [(note.kind, note.key) for note in notes]
