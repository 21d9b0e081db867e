"""`key=value` from the command line: `--set` changes the configuration, `--assume` has its own table of keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from axmem_trace.config.document.yaml_reader import parse_value
from axmem_trace.errors import ConfigError

Settings = Sequence[str] | Mapping[str, Any]


def parse_settings(settings: Settings, option: str) -> Iterator[tuple[str, Any]]:
    """Pairs of key and value. Values in text are parsed as YAML; values of a mapping are used unchanged.

    Raises:
        ConfigError: an item without `=` or without a key, or a value that is not valid YAML.
    """
    if isinstance(settings, Mapping):
        yield from settings.items()
        return
    if isinstance(settings, str):
        settings = [settings]
    for item in settings:
        key, equals, text = str(item).partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(
                problem=f"{option} {item!r} is not of the form key=value",
                remedy=f"write {option} micro_batch_size=2, for example",
            )
        try:
            yield key, parse_value(text)
        except ConfigError as error:
            problem = f"the value is {error.problem}"
            raise ConfigError(problem=problem, key=key, flag=option, value=text, remedy="quote the value") from error


def merge_settings(settings: Settings, further: Mapping[str, Any], option: str) -> Settings:
    """Both merged; the further settings override the first."""
    return {**dict(parse_settings(settings, option)), **further} if further else settings


def apply_overrides(values: dict[str, Any], overrides: Settings) -> tuple[dict[str, Any], frozenset[str]]:
    """A copy of the configuration with `--set` applied, and the keys of `--set` as the user wrote them.

    A dot separates the names of nested keys; a number selects an item of a list (`datasets.0.type`).

    Raises:
        ConfigError: a part of a dotted key names a value that is neither mapping nor list, or an item that does not exist.
    """
    result, given = dict(values), []
    for key, value in parse_settings(overrides, "--set"):
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(problem="the key has an empty part", key=key, flag="--set", remedy="write key=value")
        target: Any = result
        for depth, part in enumerate(parts[:-1]):
            target = _enter(target, part, key, ".".join(parts[: depth + 1]))
        if isinstance(target, list):
            target[_index(target, parts[-1], key)] = value
        else:
            target[parts[-1]] = value
        given.append(key)
    return result, frozenset(given)


def _enter(target: Any, part: str, key: str, path: str) -> Any:
    """Replaces the value at `part` by a copy, and returns it."""
    index: Any = _index(target, part, key) if isinstance(target, list) else part
    inner = target[index] if isinstance(target, list) else target.get(part)
    if isinstance(inner, (list, tuple)):
        target[index] = list(inner)
    elif inner is None or isinstance(inner, Mapping):
        target[index] = dict(inner or {})
    else:
        problem = f"`{path}` is neither a mapping nor a list, so no key can be set in it"
        raise ConfigError(problem=problem, key=key, flag="--set", value=inner, remedy="set the whole key")
    return target[index]


def _index(items: list[Any], part: str, key: str) -> int:
    if part.isascii() and part.isdigit() and int(part) < len(items):
        return int(part)
    accepted = f"a number from 0 to {len(items) - 1}" if items else "nothing: the list is empty"
    problem = f"{part!r} is no item of the list"
    raise ConfigError(problem=problem, key=key, flag="--set", accepted=accepted, remedy="set the whole list")
