"""Finds the notes that the package can make in its own source: their keys, their kinds, and the docstrings of the
code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
_MAKERS = {"note": (0, 1), "Note": (None, None), "RefusalNote": (None, None), "refuse": (None, 1)}
"""Functions that make a note, and the positions of the kind and the key among their positional arguments."""
_REFUSALS = ("RefusalNote", "refuse")


@dataclass(frozen=True, slots=True)
class NoteSource:
    """A call that makes a note.

    Attributes:
        kind: the kind of the note; empty if it is only known when the note is made.
        file: the path in the package.
        about: the docstring of the function, or of the file.
    """

    key: str
    kind: str
    file: str
    line: int
    about: str


@cache
def find_notes() -> tuple[NoteSource, ...]:
    """Every note whose key is written in the source."""
    return tuple(note for path, text in _sources(PACKAGE) for note in notes_in(text, path))


def notes_in(text: str, path: str) -> Iterator[NoteSource]:
    """The notes that one file makes."""
    tree = ast.parse(text)
    yield from _walk(tree, path, _summary(ast.get_docstring(tree)))


def _sources(package: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")


def _walk(node: ast.AST, path: str, about: str) -> Iterator[NoteSource]:
    for child in ast.iter_child_nodes(node):
        inner = about
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            inner = _summary(ast.get_docstring(child)) or about
        if isinstance(child, ast.Call):
            found = _note_of(child, path, about)
            if found is not None:
                yield found
        yield from _walk(child, path, inner)


def _note_of(call: ast.Call, path: str, about: str) -> NoteSource | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in _MAKERS:
        return None
    named = {each.arg: each.value for each in call.keywords}
    kind_at, key_at = _MAKERS[name]
    key = _text(named.get("key") or _argument(call, key_at))
    if not key:
        return None
    kind = "refused" if name in _REFUSALS else _text(named.get("kind") or _argument(call, kind_at))
    return NoteSource(key=key, kind=kind, file=path, line=call.lineno, about=about)


def _argument(call: ast.Call, index: int | None) -> ast.expr | None:
    return call.args[index] if index is not None and index < len(call.args) else None


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _summary(docstring: str | None) -> str:
    """The paragraphs before arguments and errors, each on one line."""
    parts = (docstring or "").split("\n\n")
    kept = [" ".join(part.split()) for part in parts if not part.startswith(("Args:", "Raises:", "Attributes:", ">>>"))]
    return "\n".join(kept)
