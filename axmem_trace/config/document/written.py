"""Where the user wrote each key: in a line of the file, or in an option of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from axmem_trace.config.document.draft import shortened
from axmem_trace.config.document.yaml_reader import Document
from axmem_trace.recipe.recipe import Written

FLAG = "--set"


def find_written_keys(document: Document, values: Mapping[str, Any], given: Iterable[str]) -> dict[str, Written]:
    """One entry for each key of `values`, items of lists included (`datasets.0.type`).

    Args:
        values: the document's values after `--set` was applied.
        given: the keys of `--set`, as the user wrote them.
    """
    given = tuple(given)
    in_file = {name for name, _ in _walk(document.values)} if given else set()
    written = {}
    for name, value in _walk(values):
        inside = any(name == key or name.startswith(f"{key}.") for key in given)
        around = name not in in_file and any(key.startswith(f"{name}.") for key in given)
        flag = FLAG if inside or around else ""
        line = 0 if flag else document.lines.get(name, 0)
        written[name] = Written(key=name, value=shortened(value), line=line, flag=flag)
    return written


def _walk(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, inner in items:
        name = f"{prefix}{key}"
        yield name, inner
        yield from _walk(inner, f"{name}.")
