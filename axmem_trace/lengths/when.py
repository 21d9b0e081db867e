"""When batches of different lengths are simulated, and the note in the report if they are not. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from axmem_trace.allocator import Reservation
from axmem_trace.notes import Note, NoteKind
from axmem_trace.recipe.recipe import Allocator, Recipe

MORE_AT_MOST = {"expandable": 0.12, "default": 3.3}
"""How much more memory batches of different lengths can reserve than full batches, as a share of the latter. It is the
largest value of the recipes in `scripts/real_lengths.py`, which range from whole models to one layer with its
vocabulary (0.107 and 3.23). If more than this is free on a card, different lengths are not simulated."""


def more_at_most(allocator: Allocator) -> float:
    """The value of `MORE_AT_MOST` for an allocator's settings."""
    return MORE_AT_MOST["expandable" if allocator.expandable_segments else "default"]


def is_worth_simulating(recipe: Recipe, reservation: Reservation, capacity_bytes: int) -> bool:
    """Whether different lengths should be simulated: it is requested, or full rows fit on the named card but other
    lengths could need more memory than it has.

    A simulation needs two or three more traces of a few layers, and the replay of some steps: a few seconds.
    """
    if recipe.lengths.asked:
        return True
    if not capacity_bytes or reservation.out_of_memory is not None:
        return False
    return capacity_bytes < (1 + more_at_most(recipe.allocator)) * reservation.peak_reserved_bytes


def note_not_simulated(recipe: Recipe) -> tuple[Note, ...]:
    """A note on the memory that is not known, and how to find it."""
    more = more_at_most(recipe.allocator)
    amount = f"up to {more:.0%} more" if more < 1 else f"up to {1 + more:.1f} times as much"
    text = (
        f"batches differ in length, and short ones before long ones can reserve {amount} than full rows in each step; "
        "`--assume lengths=vary`, or the lengths of your data, simulates it"
    )
    return (Note(kind="assumed", key="lengths", text=text, direction="more"),)


def note_cannot_simulate(recipe: Recipe, reason: str) -> tuple[Note, ...]:
    """A note for a simulation that is requested, or needed for a verdict, but is not possible. The verdict is then
    `tight` with expandable segments (`open_share`); without them, it is unknown."""
    text = f"batches that differ in length are not simulated ({reason}); they can reserve more than full ones"
    kind: NoteKind = "assumed" if recipe.allocator.expandable_segments else "not_modelled"
    return (Note(kind=kind, key="lengths", text=text, direction="more"),)


def open_share(recipe: Recipe, notes: Iterable[Note]) -> float:
    """How much more memory the run may need because of batches of different lengths, as a share, if that was not
    simulated; 0: it was simulated."""
    left_open = any(note.key == "lengths" and note.kind == "assumed" for note in notes)
    return more_at_most(recipe.allocator) if left_open else 0.0
