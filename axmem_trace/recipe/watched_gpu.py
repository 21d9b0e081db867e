"""A card that records every question that a trace asks about it, so that cards with the same answers can share the trace.

A trace depends on the card only through Python code that reads a field of `Gpu`, or that uses its compute capability: it
compares it, reads a part of it, or uses it as a key. Each such question is recorded. The trace for another card is the same
if that card gives the same answer to every question.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Gpu

Capability = tuple[int, int]
Question = tuple[Any, Any]
"""A field's name, an operator on the compute capability, or a function of it; and the other operand."""
Answer = TypeVar("Answer")
_OPERATORS: dict[str, Callable[[Capability, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "[]": operator.getitem,
}
_METHODS = ("at_most", "is_exceeded")
_FIELDS = frozenset((*(each.name for each in fields(Gpu)), "outside_bytes", *_METHODS))
_CAPABILITY = "compute_capability"


@dataclass(frozen=True, slots=True)
class CardBlock:
    """A block whose size depends on the card. The trace must not use this size for anything else.

    Attributes:
        op: the operator name of the block's allocations. No other allocation may have it.
        nbytes: compute capability -> bytes; at least 1.
        note: bytes -> the note on the block.
    """

    op: str
    nbytes: Callable[[Capability], int]
    note: Callable[[int], Note]

    def __call__(self, capability: Capability) -> int:
        """Bytes of the block."""
        return self.nbytes(capability)


class WatchedCapability(tuple[int, int]):
    """A compute capability that adds each question about it to `asked`."""

    asked: set[Question]

    def __lt__(self, other: Any) -> bool:
        return bool(self._ask("<", other))

    def __le__(self, other: Any) -> bool:
        return bool(self._ask("<=", other))

    def __gt__(self, other: Any) -> bool:
        return bool(self._ask(">", other))

    def __ge__(self, other: Any) -> bool:
        return bool(self._ask(">=", other))

    def __eq__(self, other: object) -> bool:
        return other is self or bool(self._ask("==", other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, index: Any) -> Any:
        return self._ask("[]", (index.start, index.stop, index.step) if isinstance(index, slice) else index)

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __contains__(self, part: object) -> bool:
        return part in self._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def ask(self, function: Callable[..., Answer], operands: tuple[Any, ...]) -> Answer:
        """The result of a function. The question is the call as a whole: the trace learns only its result."""
        self.asked.add((function, operands))
        return function(_plain(self), *operands)

    def ask_block(self, block: CardBlock) -> int:
        """The bytes of a block."""
        self.asked.add((block, ()))
        return block.nbytes(_plain(self))

    def _ask(self, name: str, other: Any) -> Any:
        operand = _plain(other) if isinstance(other, WatchedCapability) else other
        self.asked.add((name, operand))
        return _answer_of_capability(_plain(self), name, operand)

    def _all(self) -> Capability:
        self.asked.add((_CAPABILITY, None))
        return _plain(self)


class WatchedGpu(Gpu):
    """A card that adds each field that is read, and each question about its compute capability, to `asked`."""

    __slots__ = ("asked",)

    asked: set[Question]

    def __getattribute__(self, name: str) -> Any:
        get = object.__getattribute__
        if name not in _FIELDS:
            return get(self, name)
        asked = get(self, "asked")
        if name == _CAPABILITY:
            watched = WatchedCapability(get(self, name))
            watched.asked = asked
            return watched
        if name not in _METHODS:
            asked.add((name, None))
        return partial(_call, self, asked, name) if name in _METHODS else getattr(_unwatched(self), name)


def _call(gpu: Gpu, asked: set[Question], name: str, *operands: Any) -> Any:
    asked.add((name, operands))
    return getattr(_unwatched(gpu), name)(*operands)


def watch(gpu: Gpu, asked: set[Question]) -> WatchedGpu:
    """A copy of the card that adds all questions to `asked`."""
    values = {each.name: getattr(gpu, each.name) for each in fields(Gpu)}
    watched = object.__new__(WatchedGpu)
    object.__setattr__(watched, "asked", asked)
    for name, value in values.items():
        object.__setattr__(watched, name, value)
    return watched


def answer(gpu: Gpu, question: Question) -> Any:
    """The card's answer to a question."""
    asked, operand = question
    if asked in _OPERATORS:
        return _answer_of_capability(gpu.compute_capability, asked, operand)
    if callable(asked):
        return asked(gpu.compute_capability, *operand)
    return getattr(gpu, asked)(*operand) if asked in _METHODS else getattr(gpu, asked)


def ask(capability: Capability, function: Callable[..., Answer], *operands: Any) -> Answer:
    """`function(capability, *operands)`. For a watched capability the question is the call, not what the function reads."""
    if isinstance(capability, WatchedCapability):
        return capability.ask(function, operands)
    return function(capability, *operands)


def ask_block(capability: Capability, block: CardBlock) -> int:
    """The bytes of a block. For a card with another answer, the trace differs only in this size and in the block's note."""
    if isinstance(capability, WatchedCapability):
        return capability.ask_block(block)
    return block(capability)


def _answer_of_capability(capability: Capability, name: str, operand: Any) -> Any:
    if name == "[]" and isinstance(operand, tuple):
        return capability[slice(*operand)]
    return _OPERATORS[name](capability, operand)


def _plain(capability: Capability) -> Capability:
    return tuple.__getitem__(capability, 0), tuple.__getitem__(capability, 1)


def _unwatched(gpu: Gpu) -> Gpu:
    return Gpu(**{each.name: object.__getattribute__(gpu, each.name) for each in fields(Gpu)})
