"""Adds to errors and notes the line in which the user wrote a key, after the file was read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes, RefusalNote
from axmem_trace.recipe.recipe import Recipe, Written


@contextmanager
def errors_in_place(recipe: Recipe) -> Iterator[None]:
    """Inside this context, a `ConfigError` about a key gets the file, the line and the key's name in the file. All known
    refusals are added to it."""
    try:
        yield
    except ConfigError as error:
        if error.key and not error.file:
            place_error(error, recipe.name, recipe.written)
        error.others += tuple(as_error(refusal, recipe.name) for refusal in notes_in_place(recipe, recipe.refusals))
        raise


def notes_in_place(recipe: Recipe, notes: Iterable[Note]) -> tuple[Note, ...]:
    """The notes without duplicates, each with the line of its key and the name that the user wrote."""
    return tuple(Notes(place_note(note, recipe.written) for note in notes))


def find_written(written: Mapping[str, Written], key: str) -> Written:
    """How the user wrote a key. If the key is missing in its block, the result has the line of the block."""
    if key in written or "." not in key:
        return written.get(key, Written(key=key))
    outer, _, inner = key.partition(".")
    around = written.get(outer, Written(key=outer))
    return replace(around, key=f"{around.key}.{inner}")


def place_error(error: ConfigError, name: str, written: Mapping[str, Written]) -> None:
    """Adds the file's `name`, the line, and the key as written to an error about a key."""
    found = find_written(written, error.key)
    error.file, error.line, error.key, error.flag = name, found.line, found.key, found.flag


def as_error(note: Note, name: str) -> ConfigError:
    """A refusal with its line, as one error of several."""
    value, remedy = (note.value, note.remedy) if isinstance(note, RefusalNote) else ("", "")
    flag = note.flag if isinstance(note, RefusalNote) else ""
    return ConfigError(
        problem=note.text, file=name, line=note.line, key=note.key, value=value or None, remedy=remedy, flag=flag
    )


def place_note(note: Note, written: Mapping[str, Written]) -> Note:
    """The note with its key's line, by the name that the user gave the key; a refusal with the value as well."""
    found = find_written(written, note.key)
    line = note.line or found.line
    if not isinstance(note, RefusalNote):
        return replace(note, line=line, key=found.key)
    return replace(note, line=line, key=found.key, value=note.value or found.value, flag=found.flag)
