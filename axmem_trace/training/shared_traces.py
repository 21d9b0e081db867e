"""Uses one trace for all cards, and for all numbers of cards, for which it is the same. This is for estimates of one
run on many cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from axmem_trace.allocator import Reservation, replay
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.columns import Allocations
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.parallel import Mesh, Parallel
from axmem_trace.recipe.recipe import Allocator, Gpu, Recipe
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
    resized: dict[tuple[int, ...], TracedRun] = field(default_factory=dict)
    """The run with other sizes of the blocks that depend on the card. Each variant is made once, so that equal ledgers
    are the same object."""


@dataclass
class _Shared:
    runs: list[_Known] = field(default_factory=list)
    reservations: dict[tuple[int, int], tuple[Ledger, Allocator, Reservation]] = field(default_factory=dict)
    """Reservations by the ledger's `id` and the capacity."""


_ABOUT_THE_CARD = ("--gpu", "nccl", "precision.load_dtype")
"""Keys of reasons and notes that name the card, its links, or its dtype, which is a field of the recipe too."""
_shared: _Shared | None = None
"""The traces so far; None: each estimate makes its own trace."""


@contextmanager
def traces_shared() -> Iterator[None]:
    """While open, equal runs are traced once for all cards with the same properties that the trace has read.

    A report is made for each card. The allocator is replayed for each card that the reservation with unlimited memory
    does not fit.
    """
    global _shared
    before, _shared = _shared, _Shared()
    try:
        yield
    finally:
        _shared = before


def trace_once(recipe: Recipe, rank: int | None, trace: Callable[[Recipe], TracedRun]) -> TracedRun:
    """The trace of a recipe. Inside `traces_shared`, it may be a trace that was made for another card."""
    if _shared is None:
        return trace(recipe)
    without_card = _without_card(recipe)
    for known in _shared.runs:
        if known.rank == rank and known.recipe == without_card and _are_alike(known.gpu, recipe.gpu, known.asked):
            return _on_ranks(_with_blocks_of(recipe.gpu, known), recipe)
    asked: set[Question] = set()
    run = trace(replace(recipe, gpu=watch(recipe.gpu, asked)))
    _shared.runs.append(_Known(without_card, rank, recipe.gpu, frozenset(asked), run))
    return run


def replay_once(ledger: Ledger, allocator: Allocator, *, capacity_bytes: int = 0) -> Reservation:
    """Like `replay`, but inside `traces_shared` each replay is made once. A reservation with unlimited memory is also
    valid for all cards that it fits: the allocator uses its limit only when the limit is reached, or if it collects
    garbage."""
    if _shared is None or allocator.garbage_collection_threshold:
        return replay(ledger, allocator, capacity_bytes=capacity_bytes)
    reservation = _replay_kept(_shared, ledger, allocator, 0)
    if not capacity_bytes or reservation.peak_reserved_bytes <= capacity_bytes:
        return reservation
    return _replay_kept(_shared, ledger, allocator, capacity_bytes)


def _replay_kept(shared: _Shared, ledger: Ledger, allocator: Allocator, capacity_bytes: int) -> Reservation:
    key = id(ledger), capacity_bytes
    kept = shared.reservations.get(key)
    if kept is None or kept[1] != allocator:
        made = replay(ledger, allocator, capacity_bytes=capacity_bytes)
        kept = shared.reservations[key] = ledger, allocator, made
    return kept[2]


def is_same_trace(recipe: Recipe, gpu: Gpu) -> bool:
    """Whether a run that was traced with `recipe` inside `traces_shared` has the same trace on this card, including
    cuBLAS's blocks."""
    known = [each for each in _shared.runs if each.recipe == _without_card(recipe)] if _shared else []
    return bool(known) and all(
        answer(recipe.gpu, question) == answer(gpu, question) for each in known for question in each.asked
    )


def _are_alike(one: Gpu, other: Gpu, asked: frozenset[Question]) -> bool:
    return all(answer(one, question) == answer(other, question) for question in asked if not _is_block(question))


def _is_block(question: Question) -> bool:
    return isinstance(question[0], CardBlock)


def _with_blocks_of(gpu: Gpu, known: _Known) -> TracedRun:
    """The trace with the blocks of this card, and with the notes on these blocks."""
    blocks = [question for question in known.asked if _is_block(question)]
    sizes = tuple(answer(gpu, question) for question in blocks)
    if sizes not in known.resized:
        run = known.run
        for question, after in zip(blocks, sizes, strict=True):
            before = answer(known.gpu, question)
            run = run if before == after else _resize(run, question[0], before, after)
        known.resized[sizes] = run
    return known.resized[sizes]


def _resize(run: TracedRun, block: CardBlock, before: int, after: int) -> TracedRun:
    def with_size(ledger: Ledger) -> Ledger:
        columns = ledger.columns
        nbytes = columns.nbytes.copy()
        nbytes[columns.where(lambda kind: kind.op == block.op)] = after
        return replace(ledger, allocations=Allocations(replace(columns, nbytes=nbytes)))

    old_note, new_note = block.note(before), block.note(after)
    return replace(
        run,
        ledger=with_size(run.ledger),
        other_ranks={rank: with_size(ledger) for rank, ledger in run.other_ranks.items()},
        notes=tuple(new_note if note == old_note else note for note in run.notes),
    )


def _on_ranks(run: TracedRun, recipe: Recipe) -> TracedRun:
    """With DDP, all ranks are equal, and their number does not matter (tests/parallel/test_ddp_folded.py), unless they share
    rows."""
    if not _is_plain_ddp(recipe.parallel):
        return run
    from axmem_trace.parallel.ranks import all_alike

    return replace(run, groups=all_alike(recipe.parallel.num_gpus))


def _is_plain_ddp(parallel: Parallel) -> bool:
    return parallel.engine == "ddp" and parallel.context.size == 1


def _without_card(recipe: Recipe) -> Recipe:
    """The fields of a recipe that a trace can read, without the card and the texts about it. With DDP, also without the
    number of GPUs."""
    reasons = {name: reason for name, reason in recipe.reasons.items() if name not in _ABOUT_THE_CARD}
    notes = tuple(note for note in recipe.notes if note.key not in _ABOUT_THE_CARD)
    parallel = recipe.parallel
    if _is_plain_ddp(parallel):
        parallel = replace(parallel, num_gpus=2, num_nodes=1, count_is_assumed=False, mesh=Mesh())
        reasons = {name: reason for name, reason in reasons.items() if not name.startswith("parallel.")}
    return replace(
        recipe, gpu=Gpu(), lengths=RowLengths(), parallel=parallel, notes=notes, reasons=reasons, alternatives=()
    )
