"""Changes keys in a YAML text and leaves all other characters as they are: comments, order, quotes.

PyYAML says where each value begins and ends, so values are replaced in the text. A library that reads and writes the whole
document (ruamel.yaml) would also reformat lines that are not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

ADDED = "# added by axmem_trace fit"


def edit_yaml(text: str, settings: Mapping[str, Any]) -> str:
    """The text with top-level keys set. Keys that it does not have are added at its end.

    A text that can't be edited in place (one line in braces, an alias as the value of a key) is written again as a whole,
    without its comments.

    >>> print(edit_yaml("a: 1  # one\\nb: 2\\n", {"a": 3, "c": [4]}), end="")
    a: 3  # one
    b: 2
    # added by axmem_trace fit
    c:
    - 4

    Args:
        text: a mapping in YAML; empty for none.
        settings: top-level keys and their new values.
    """
    wanted = {**(yaml.safe_load(text) or {}), **settings}
    edited = text
    for key, value in settings.items():
        edited = _replace(edited, key, value)
    edited = _append(edited, {key: value for key, value in settings.items() if _find(edited, key) is None})
    return edited if _reads_as(edited, wanted) else yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def cut_keys(text: str, keys: Iterable[str]) -> str:
    """The lines of some top-level keys: the comments directly above, the key, its value, and comments on the same lines."""
    lines = text.splitlines()
    parts = []
    for key in keys:
        found = _find(text, key)
        if found is None:
            continue
        first = found[0].start_mark.line
        last = text.count("\n", 0, _end(found[1]))
        while first and lines[first - 1].startswith("#") and lines[first - 1] != ADDED:
            first -= 1
        parts += lines[first : last + 1]
    return "".join(f"{line}\n" for line in parts)


def _reads_as(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _find(text: str, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """The nodes of a key and its value. If the key is given several times, the last one counts."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((pair for pair in reversed(pairs) if pair[0].value == key), None)


def _end(node: yaml.Node) -> int:
    """The index after the last character of a value. PyYAML puts the end of a block after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _replace(text: str, key: str, value: Any) -> str:
    found = _find(text, key)
    if found is None:
        return text
    node: Any = found[1]
    start, end = node.start_mark.index, _end(node)
    old = yaml.safe_load(text)[key]
    if old == value and type(old) is type(value):
        return text
    if isinstance(value, list) and isinstance(old, list) and old and value[: len(old)] == old and not node.flow_style:
        indent = " " * node.start_mark.column
        end = len(text) if "\n" not in text[end:] else text.index("\n", end)
        return text[:end] + "".join(f"\n{indent}- {_in_one_line(item)}" for item in value[len(old) :]) + text[end:]
    if isinstance(value, (list, Mapping)) and value and not getattr(node, "flow_style", False):
        start = found[0].end_mark.index + text[found[0].end_mark.index :].index(":") + 1
        body = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")
        return text[:start] + "".join(f"\n  {line}" for line in body.splitlines()) + text[end:]
    space = " " if text[start - 1 : start] == ":" else ""
    return text[:start] + space + _in_one_line(value) + text[end:]


def _in_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text.removesuffix("\n").removesuffix("\n...")


def _append(text: str, settings: Mapping[str, Any]) -> str:
    if not settings:
        return text
    body = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    head = text if not text or text.endswith("\n") else f"{text}\n"
    return f"{head}{ADDED}\n{body}"
