"""Adds the figures of a recipe's alternatives to its notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.units import format_bytes

LEAST_DIFFERENCE = 0.1
"""The smallest difference that is reported, as a share of the recipe's own figure."""


def compare_alternatives(recipe: Recipe, reserved_bytes: int, estimate_bytes: Callable[[Recipe], int]) -> Recipe:
    """The recipe with the alternatives' figures in its notes.

    Args:
        reserved_bytes: the recipe's own figure.
        estimate_bytes: returns the same figure for another recipe. A recipe that can't be estimated is left out.
    """
    notes = Notes(recipe.notes)
    for alternative in recipe.alternatives:
        if alternative.recipe is None:
            notes.append(replace(alternative.note, text=f"{alternative.note.text}. {alternative.words} estimates that"))
            continue
        try:
            other = estimate_bytes(alternative.recipe)
        except ConfigError:
            continue
        if abs(other - reserved_bytes) > LEAST_DIFFERENCE * reserved_bytes:
            figures = f"{format_bytes(other)} reserved, where this run has {format_bytes(reserved_bytes)}"
            text = f"With {alternative.words}: {figures}. {alternative.note.text}"  # the first screen cuts texts
            notes = Notes(note for note in notes if note != alternative.note)
            notes.append(replace(alternative.note, text=text))
    return replace(recipe, notes=tuple(notes))
