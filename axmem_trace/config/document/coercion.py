"""Convert values to the types of axolotl's schema, as leniently as pydantic does.

A type is written as in `keys.json`: alternatives between bars, as in `'auto'|bool|null` or `str|list[str]|null`.
Atoms: `bool int float str any dict list null`, `list[ATOM]`, `dict[ATOM]` (the type of its keys), `str~PATTERN` (text
whose start matches) and quoted literals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})
_WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*(\.0*)?", re.ASCII)
"""What pydantic reads as a whole number: `2_048` and `4.0` are, `2e3` is not."""
_DESCRIPTIONS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "dict[str]": "a mapping",
    "dict[int]": "a mapping whose keys are whole numbers",
    "list[dict]": "a list of mappings",
    "list[list[int]]": "a list of lists of whole numbers",
    "list[str]": "a list of text",
    "list[int]": "a list of whole numbers",
    "list[float]": "a list of numbers",
    "null": "nothing",
    "any": "anything",
}


def coerce(value: Any, type_name: str) -> Any:
    """`value` converted to the first alternative of `type_name` that accepts it.

    An alternative that accepts the value without conversion comes first. Conversion follows pydantic outside strict mode:
    `"true"`, `"yes"` and 1 become a boolean, `"4"` and 4.0 a whole number, `"2e-4"` a number (YAML 1.1 reads `2e-4`, which
    has no dot, as text). A number never becomes text.

    Raises:
        ValueError: no alternative accepts the value.

    >>> coerce("2e-4", "float"), coerce("yes", "bool|null"), coerce("auto", "'auto'|bool|null")
    (0.0002, True, 'auto')
    """
    alternatives = type_name.split("|")
    for exact in (True, False):
        for alternative in alternatives:
            try:
                return _coerce_one(value, alternative, exact)
            except ValueError:
                continue
    raise ValueError(f"{value!r} is not {describe(type_name)}")


def describe(type_name: str) -> str:
    """A type in words for users: `true or false, or nothing`."""
    atoms = type_name.split("|")
    words = [_DESCRIPTIONS.get(atom, atom.strip("'").removeprefix("str~^")) for atom in atoms if atom != "null"]
    return ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1] if words else "nothing"


def _coerce_one(value: Any, atom: str, exact: bool) -> Any:
    if atom.startswith("'"):
        return _if(isinstance(value, str) and value == atom[1:-1], value)
    if atom.startswith("list["):
        _if(isinstance(value, (list, tuple)), None)
        return [_coerce_one(item, atom[5:-1], exact) for item in value]
    if atom.startswith("dict["):
        _if(isinstance(value, Mapping), None)
        return {_coerce_one(key, atom[5:-1], exact): item for key, item in value.items()}
    if atom.startswith("str~"):
        return _if(isinstance(value, str) and re.match(atom[4:], value) is not None, value)
    return _ATOMS[atom](value, exact)


def _if(condition: bool, value: Any) -> Any:
    if not condition:
        raise ValueError
    return value


def _bool(value: Any, exact: bool) -> bool:
    if isinstance(value, bool):
        return value
    if not exact and isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if not exact and isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ValueError


def _int(value: Any, exact: bool) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not exact and isinstance(value, bool):
        return int(value)
    if not exact and isinstance(value, float) and value.is_integer():
        return int(value)
    if not exact and isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    raise ValueError


def _float(value: Any, exact: bool) -> float:
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError from None
    if not exact and isinstance(value, (bool, str)):
        return float(value)
    raise ValueError


_ATOMS: dict[str, Callable[[Any, bool], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": lambda value, exact: _if(isinstance(value, str), value),
    "dict": lambda value, exact: _if(isinstance(value, Mapping), dict(value) if isinstance(value, Mapping) else None),
    "list": lambda value, exact: _if(
        isinstance(value, (list, tuple)), list(value) if isinstance(value, (list, tuple)) else None
    ),
    "null": lambda value, exact: _if(value is None, None),
    "any": lambda value, exact: value,
}
