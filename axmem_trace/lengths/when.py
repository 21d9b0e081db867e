"""When batches that differ in length are simulated, and what a report says where they are not. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from axmem_trace.allocator import Reservation
from axmem_trace.notes import Note, NoteKind
from axmem_trace.recipe.recipe import Allocator, Recipe

MORE_AT_MOST = {"expandable": 0.12, "default": 3.3}
"""By how much batches that differ in length can reserve more than full ones, as a share of those: the worst of the recipes
of `scripts/real_lengths.py`, from whole models down to one layer with its vocabulary (0.107 and 3.23). Where a card has
more than this free, they are not simulated."""


def more_at_most(allocator: Allocator) -> float:
    """`MORE_AT_MOST` with an allocator's settings."""
    return MORE_AT_MOST["expandable" if allocator.expandable_segments else "default"]


def is_worth_simulating(recipe: Recipe, reservation: Reservation, capacity_bytes: int) -> bool:
    """It is requested; or a card is named on which full rows fit, and others could need more than it has.

    It takes two or three further traces of a few layers, and the replay of some steps: a few seconds.
    """
    if recipe.lengths.asked:
        return True
    if not capacity_bytes or reservation.out_of_memory is not None:
        return False
    return capacity_bytes < (1 + more_at_most(recipe.allocator)) * reservation.peak_reserved_bytes


def note_not_simulated(recipe: Recipe) -> tuple[Note, ...]:
    """What is left open, and how to know it."""
    more = more_at_most(recipe.allocator)
    amount = f"up to {more:.0%} more" if more < 1 else f"up to {1 + more:.1f} times as much"
    text = (
        f"batches differ in length, and short ones before long ones can reserve {amount} than full rows in each step; "
        "`--assume lengths=vary`, or the lengths of your data, simulates it"
    )
    return (Note(kind="assumed", key="lengths", text=text, direction="more"),)


def note_cannot_simulate(recipe: Recipe, reason: str) -> tuple[Note, ...]:
    """Asked for, or needed for a verdict, and not possible. With expandable segments the verdict is `tight` then
    (`open_share`); without, it is not known."""
    text = f"batches that differ in length are not simulated ({reason}); they can reserve more than full ones"
    kind: NoteKind = "assumed" if recipe.allocator.expandable_segments else "not_modelled"
    return (Note(kind=kind, key="lengths", text=text, direction="more"),)


def open_share(recipe: Recipe, notes: Iterable[Note]) -> float:
    """By how much the run may need more because batches differ in length, where that was not simulated; 0: it was."""
    left_open = any(note.key == "lengths" and note.kind == "assumed" for note in notes)
    return more_at_most(recipe.allocator) if left_open else 0.0
