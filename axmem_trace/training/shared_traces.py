"""One trace for all cards on which it is the same: for estimates of one run on many cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from axmem_trace.ledger.columns import Allocations
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Gpu, Recipe
from axmem_trace.recipe.watched_gpu import CardBlock, Question, answer, watch

if TYPE_CHECKING:
    from axmem_trace.training.layer_folding import TracedRun


@dataclass(frozen=True, slots=True)
class _Known:
    recipe: Recipe
    rank: int | None
    gpu: Gpu
    asked: frozenset[Question]
    run: TracedRun


_ABOUT_THE_CARD = ("--gpu", "nccl", "precision.load_dtype")
"""Keys of reasons and notes that name the card, its links, or its dtype, which is a field of the recipe too."""
_shared: list[_Known] | None = None
"""The traces so far; None: each estimate makes its own."""


@contextmanager
def traces_shared() -> Iterator[None]:
    """Inside, equal runs on cards that give the trace the same answers are traced once.

    The allocator is replayed and the report made for each card.
    """
    global _shared
    before, _shared = _shared, []
    try:
        yield
    finally:
        _shared = before


def trace_once(recipe: Recipe, rank: int | None, trace: Callable[[Recipe], TracedRun]) -> TracedRun:
    """The trace of a recipe; inside `traces_shared` perhaps one that was made for another card."""
    if _shared is None:
        return trace(recipe)
    without_card = _without_card(recipe)
    for known in _shared:
        if known.rank == rank and known.recipe == without_card and _are_alike(known.gpu, recipe.gpu, known.asked):
            return _with_blocks_of(recipe.gpu, known)
    asked: set[Question] = set()
    run = trace(replace(recipe, gpu=watch(recipe.gpu, asked)))
    _shared.append(_Known(without_card, rank, recipe.gpu, frozenset(asked), run))
    return run


def _are_alike(one: Gpu, other: Gpu, asked: frozenset[Question]) -> bool:
    return all(answer(one, question) == answer(other, question) for question in asked if not _is_block(question))


def _is_block(question: Question) -> bool:
    return isinstance(question[0], CardBlock)


def _with_blocks_of(gpu: Gpu, known: _Known) -> TracedRun:
    """The trace with the blocks, and the notes on them, that this card has."""
    run = known.run
    for question in known.asked:
        if _is_block(question):
            before, after = answer(known.gpu, question), answer(gpu, question)
            run = run if before == after else _resize(run, question[0], before, after)
    return run


def _resize(run: TracedRun, block: CardBlock, before: int, after: int) -> TracedRun:
    columns = run.ledger.columns
    nbytes = columns.nbytes.copy()
    nbytes[columns.where(lambda kind: kind.op == block.op)] = after
    ledger = replace(run.ledger, allocations=Allocations(replace(columns, nbytes=nbytes)))
    old_note, new_note = block.note(before), block.note(after)
    return replace(run, ledger=ledger, notes=tuple(new_note if note == old_note else note for note in run.notes))


def _without_card(recipe: Recipe) -> Recipe:
    """All of a recipe that a trace can read, except for the card and the texts about it."""
    reasons = {name: reason for name, reason in recipe.reasons.items() if name not in _ABOUT_THE_CARD}
    notes = tuple(note for note in recipe.notes if note.key not in _ABOUT_THE_CARD)
    return replace(recipe, gpu=Gpu(), lengths=RowLengths(), notes=notes, reasons=reasons, alternatives=())
