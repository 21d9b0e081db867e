"""Converts frozen dataclasses to plain JSON values and back. The annotations of the dataclasses control it."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Converts dataclasses to dicts (a field's `json` metadata renames it) and tuples to lists; anything else is
    unchanged."""
    if is_dataclass(value):
        return {each.metadata.get("json", each.name): encode(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any, where: str = "report") -> Any:
    """The inverse of `encode`: converts `value` to the annotated type `kind`.

    Raises:
        ValueError: `value` does not have that type; the message says where.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        inner = [each for each in arguments if each is not type(None)]
        return None if value is None else decode(inner[0], value, where)
    if origin is tuple:
        _expect(list, value, where)
        return tuple(decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None:  # Mapping[str, X]
        _expect(dict, value, where)
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    _expect((int, float) if kind is float else kind, value, where)
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(dict, value, where)
    found = {}
    for name, json_name, annotation, required in _fields_of(kind):
        if json_name in value:
            found[name] = decode(annotation, value[json_name], f"{where}.{json_name}")
        elif required:
            raise ValueError(f"{where}: {json_name} is missing")
    return kind(**found)


@cache
def _fields_of(kind: Any) -> tuple[tuple[str, str, Any, bool], ...]:
    """Name, JSON name, annotation and whether it is required, for each field."""
    hints = get_type_hints(kind)
    return tuple(
        (
            each.name,
            each.metadata.get("json", each.name),
            hints[each.name],
            each.default is MISSING and each.default_factory is MISSING,
        )
        for each in fields(kind)
    )


def _expect(kind: Any, value: Any, where: str) -> None:
    accepted = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        names = " or ".join(each.__name__ for each in accepted)
        raise ValueError(f"{where}: expected {names}, found {type(value).__name__}")


def decode_report(kind: type[T], text: str, newest: int) -> T:
    """A report from its JSON text; refuses a schema newer than `newest`.

    Raises:
        ValueError: the text is not JSON, is not a report, or has a newer schema.
    """
    value = json.loads(text)
    _expect(dict, value, "report")
    version = value.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise ValueError(f"report: schema_version {version!r} is not one this version reads (1 to {newest})")
    return decode(kind, value)
