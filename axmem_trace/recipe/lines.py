"""Where in the file a key stands, for faults and notes that are found after the file was read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe


@contextmanager
def errors_in_place(recipe: Recipe) -> Iterator[None]:
    """While open, a `ConfigError` about a key leaves with the file and the line that the key has there."""
    try:
        yield
    except ConfigError as error:
        if error.key and not error.file:
            error.file, error.line = recipe.name, _line(recipe, error.key)
        raise


def notes_in_place(recipe: Recipe, notes: Iterable[Note]) -> tuple[Note, ...]:
    """The notes, each once and with its key's line."""
    return tuple(Notes(note if note.line else replace(note, line=_line(recipe, note.key)) for note in notes))


def _line(recipe: Recipe, key: str) -> int:
    return recipe.lines.get(key) or recipe.lines.get(key.split(".")[0], 0)
