"""Finds the explanations of a word."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from axmem_trace.advice.fitting.candidates import CANDIDATES
from axmem_trace.config.document.key_table import KEYS, Key
from axmem_trace.render.explain.rules import find_notes
from axmem_trace.render.explain.words import HOLDERS, PHASES, SCREEN_WORDS, VERDICTS, kinds_of_notes

NUM_NEAREST = 4
_VERDICTS_OF_KEYS = {
    "modelled": "It is in the figures.",
    "none": "It has no effect on GPU memory.",
    "not_modelled": "It changes memory and is not in the figures.",
}


def explain(word: str) -> str:
    """All explanations of a word; empty if there is none. Case and backquotes don't matter."""
    asked = word.strip().strip("`").lower()
    return "\n".join(f"{title}\n{_wrapped(text)}" for name, title, text in _entries() if name.lower() == asked)


def nearest_words(word: str) -> list[str]:
    """Words with an explanation that are similar to this word."""
    names = {name.lower(): name for name, _, _ in _entries()}
    found = difflib.get_close_matches(word.lower(), names, n=NUM_NEAREST, cutoff=0.5)
    return [names[each] for each in found]


@cache
def _entries() -> tuple[tuple[str, str, str], ...]:
    """The word, title and text of each explanation."""
    return (*_report_words(), *_candidates(), *_keys(), *_notes())


def _report_words() -> Iterator[tuple[str, str, str]]:
    parts: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("verdict", VERDICTS),
        ("phase", PHASES),
        ("use of memory", HOLDERS),
        ("word of the screens", SCREEN_WORDS),
        ("kind of note", kinds_of_notes()),
    )
    for what, words in parts:
        for word, text in words.items():
            yield word, f"{word}: {what}", text
    schema = json.loads(resources.files("axmem_trace.report").joinpath("report.schema.json").read_text("utf-8"))
    yield from _fields("report", schema["properties"])
    for name, part in schema["$defs"].items():
        yield from _fields(name, part.get("properties", {}))


def _fields(owner: str, properties: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, field in properties.items():
        if field.get("description"):
            yield name, f"{name}: field of {owner} in the report's JSON", field["description"]


def _candidates() -> Iterator[tuple[str, str, str]]:
    for each in CANDIDATES:
        yield each.name, f"{each.name}: a change that `fit` tries", f"{each.about.strip()}\n\nIt costs: {each.cost}."


def _keys() -> Iterator[tuple[str, str, str]]:
    for key in KEYS.values():
        yield key.name, f"{key.name}: key of axolotl", _describe(key)


def _describe(key: Key) -> str:
    default = "" if key.default is None else f" Default: {json.dumps(key.default)}."
    plugin = f" It only has an effect if the plugin `{key.plugin}` is listed." if key.plugin else ""
    effect = f" {key.effect[:1].upper()}{key.effect[1:]}." if key.effect else ""
    return f"{_VERDICTS_OF_KEYS[key.verdict]}{effect} Type: {key.type}.{default}{plugin}"


def _notes() -> Iterator[tuple[str, str, str]]:
    for note in find_notes():
        kind = f"{note.kind} note" if note.kind else "note"
        yield note.key, f"{note.key}: {kind} ({note.file})", note.about


def _wrapped(text: str) -> str:
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n".join(textwrap.fill(part, 78, initial_indent="  ", subsequent_indent="  ") for part in paragraphs)
