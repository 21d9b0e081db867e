"""`key=value` from the command line: `--set` into the configuration, `--assume` into a table of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from axmem_trace.config.document.yaml_reader import parse_value
from axmem_trace.errors import ConfigError

Settings = Sequence[str] | Mapping[str, Any]


def parse_settings(settings: Settings, option: str) -> Iterator[tuple[str, Any]]:
    """Pairs of key and value; a text value is read as YAML, a mapping's values are taken as they are.

    Raises:
        ConfigError: an item without `=` or without a key, or a value that is no YAML.
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
            raise ConfigError(
                problem=f"the value of {option} {key} is {error.problem}", key=key, value=text, remedy="quote the value"
            ) from error


def apply_overrides(values: dict[str, Any], overrides: Settings) -> tuple[dict[str, Any], frozenset[str]]:
    """A copy of the configuration with `--set` applied (dots nest), and the top-level keys that were touched.

    Raises:
        ConfigError: a dotted key leads through a value that is no mapping.
    """
    result, touched = dict(values), set()
    for key, value in parse_settings(overrides, "--set"):
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(problem=f"--set {key!r} has an empty part", key=key)
        target = result
        for depth, part in enumerate(parts[:-1]):
            inner = target.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                raise ConfigError(
                    problem=f"--set {key} goes into `{'.'.join(parts[: depth + 1])}`, which is no mapping",
                    key=key,
                    value=inner,
                    remedy="set the whole key",
                )
            target[part] = dict(inner or {})
            target = target[part]
        target[parts[-1]] = value
        touched.add(parts[0])
    return result, frozenset(touched)
