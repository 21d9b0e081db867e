"""Describes changes in words, and joins several changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from axmem_trace.advice.fitting.candidate import Change

MAX_VALUE_LENGTH = 40


def join(first: Change, second: Change) -> Change:
    """Both changes as one. The second was proposed for the configuration with the first, so its values are used."""
    return Change(
        settings={**first.settings, **second.settings},
        num_gpus=second.num_gpus or first.num_gpus,
        environment={**first.environment, **second.environment},
    )


def describe_change(change: Change, values: Mapping[str, Any]) -> str:
    """The old and new values: `micro_batch_size: 2 -> 1, gradient_accumulation_steps: 4 -> 8`.

    Args:
        values: the configuration before the change.
    """
    parts = [*_settings_in_words(change.settings, values)]
    parts += [f"{change.num_gpus} GPUs"] if change.num_gpus else []
    parts += [f"{name}={value}" for name, value in list(change.environment.items())[:1]]
    return ", ".join(parts)


def _settings_in_words(settings: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        old = values.get(key)
        if old == value and type(old) is type(value):
            continue
        if key == "plugins":
            continue
        if isinstance(value, Mapping):
            before = old if isinstance(old, Mapping) else {}
            inner = ", ".join(_settings_in_words(value, before))
            yield f"{key}: {{{inner}}}" if len(inner) <= MAX_VALUE_LENGTH else key
        elif value is None:
            yield f"without {key}"
        elif old is None or isinstance(value, bool):
            yield f"{key}: {in_yaml(value)}"
        else:
            yield f"{key}: {in_yaml(old)} -> {in_yaml(value)}"


def in_yaml(value: Any) -> str:
    """A plain value in the form of YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
