"""The foldings that were checked in this process. For another number of tokens, or another card, no second model is
needed.

The check with a model that is one period shorter does not depend on the number of tokens, if everything except sizes is
the same: the order of the events, their layers, and the sizes outside of layers that grow with each period. Every
recording is still made and divided, so the kept checks can't make a size wrong.

`fit` estimates many changes and uses few: inside `checks_left_out`, what grows is taken from a checked run of the same
model, and nothing of such a run is kept. What is used in the end is estimated again, with its check.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from axmem_trace.folding.repetition import Repetition
from axmem_trace.folding.sections import EventLayers, Sections
from axmem_trace.ledger import Ledger, same_events
from axmem_trace.model_facts import ModelFacts
from axmem_trace.notes import Note
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Gpu, Recipe

MOST_KEPT = 24
"""The number of checks that are kept, those of the latest recipes. Each needs about a megabyte."""


@dataclass(frozen=True, kw_only=True)
class CheckedFold:
    """A short model's recording, and the result of its check against a shorter model.

    Attributes:
        recipe: that of the run; `rank`: the recorded rank.
        ledger, layers, facts, notes: those of the short model.
        may_grow: positions of allocations outside of layers whose size may depend on the number of layers.
        growth: the bytes by which allocations outside of layers grow with each period, by position in the ledger.
    """

    recipe: Recipe
    rank: int | None
    repetition: Repetition
    ledger: Ledger
    layers: EventLayers
    facts: ModelFacts
    notes: tuple[Note, ...]
    may_grow: tuple[int, ...]
    growth: Mapping[int, int] = field(default_factory=dict)

    def covers(self, other: CheckedFold) -> bool:
        """Whether the other recording differs from this one only in tokens, and in sizes that depend on them."""
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

    def growth_like(self, other: CheckedFold) -> Mapping[int, int] | None:
        """The growth of this one, if the other recording has as many layers, trains the same weights, and makes what may
        grow by the same operators, in the same steps and sizes; else None."""
        alike = (
            self.rank is None
            and other.rank is None
            and self.repetition == other.repetition
            and _trained(self.facts) == _trained(other.facts)
            and len(self.may_grow) == len(other.may_grow)
        )
        if not alike:
            return None
        found = {old: new for old, new in zip(self.may_grow, other.may_grow, strict=True) if old in self.growth}
        if found.keys() != self.growth.keys() or any(self._made(old) != other._made(new) for old, new in found.items()):
            return None
        return {new: self.growth[old] for old, new in found.items()}

    def _made(self, position: int) -> tuple[str, int, int]:
        made = self.ledger.allocations[position]
        return made.op, made.step, made.nbytes


def positions_that_may_grow(ledger: Ledger, sections: Sections, operators: Sequence[str]) -> tuple[int, ...]:
    """Allocations outside of layers that one of these operators made, after the passes."""
    found = ledger.columns.where(lambda kind: kind.phase == "optimizer" and kind.op in operators).nonzero()[0].tolist()
    return tuple(position for position in found if position not in sections.homes)


_checked: list[CheckedFold] = []
_leaves_out = False


@contextmanager
def checks_left_out() -> Iterator[None]:
    """Inside, a run like a checked one is not checked."""
    global _leaves_out
    before, _leaves_out = _leaves_out, True
    try:
        yield
    finally:
        _leaves_out = before


def growth_without_check(recording: CheckedFold) -> Mapping[int, int] | None:
    """Inside `checks_left_out`, the growth of the latest checked run like this one; None: it has to be checked."""
    if not _leaves_out:
        return None
    found = (each.growth_like(recording) for each in reversed(_checked))
    return next((growth for growth in found if growth is not None), None)


def known_growth(recording: CheckedFold) -> Mapping[int, int] | None:
    """The growth from the check of such a recording; None: there was no check, so it must be checked."""
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
    """Keeps the checks that another process of this package packed."""
    for checked in pickle.loads(packed):
        remember(checked)


class _Pickler(pickle.Pickler):
    """A pickler that supports the read-only mappings of a recipe."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, MappingProxyType):
            return _make_read_only, (dict(value),)
        return NotImplemented


def _make_read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def forget_all() -> None:
    """Drops all checks, as in a new process."""
    _checked.clear()


def without_tokens(recipe: Recipe) -> Recipe:
    """The recipe without the shape of its batches, the card, and everything that only the report shows."""
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


def _trained(facts: ModelFacts) -> list[str]:
    return [fact.name for fact in facts.tensors if fact.trainable]


def _names(notes: tuple[Note, ...]) -> list[tuple[str, str]]:
    return [(note.kind, note.key) for note in notes]
