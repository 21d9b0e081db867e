"""Every key gets its verdict: types checked, unknown keys told, keys that move memory unseen named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from axmem_trace.config.document.coercion import coerce, describe
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.document.key_table import KEYS, PLUGINS, Key, nearest_key
from axmem_trace.config.document.old_names import GONE_KEYS
from axmem_trace.errors import ConfigError

_WHOLE_PLUGINS = {
    "llm_compressor": ("llmcompressor", "more"),
    "hatchery": ("hatchery", "less"),
    "nemo_gym": ("nemo_gym_enabled", "more"),
}
"""Plugins that act as soon as they are listed, and the key that tells what they do."""
_DIRECTIONS = {"more": "needs more memory than shown", "less": "needs less memory than shown", "either": "differs"}


def find_plugins(names: object) -> frozenset[str]:
    """Packages of the listed plugins: `axolotl.integrations.liger.LigerPlugin` -> `liger`."""
    listed = names if isinstance(names, (list, tuple)) else []
    return frozenset(
        package
        for package, full_name in PLUGINS.items()
        for name in listed
        if isinstance(name, str) and (name == full_name or name.startswith(full_name.rpartition(".")[0] + "."))
    )


def check_types(draft: Draft) -> None:
    """Turns each value into its schema's type; drops, with a note, what axolotl would drop.

    axolotl's pydantic model has no `extra="forbid"`: an unknown key, and a key of a plugin that is not listed, passes
    validation and is gone after it (`utils/config/__init__.py`, `validate_config`).

    Raises:
        ConfigError: a value of the wrong type.
    """
    for name in list(draft.values):
        value = draft.values[name]
        key = KEYS.get(name)
        if key is None:
            _drop_unknown(draft, name)
            continue
        draft.values[name] = _coerced(draft, key, value, name)
        if isinstance(draft.values[name], dict):
            draft.values[name] = _check_nested(draft, name, draft.values[name])
        if not draft.is_live(name):
            draft.dropped[name] = draft.values.pop(name)
            if _moves_memory(key, draft.dropped[name]) or key.verdict == "modelled":
                _note_missing_plugin(draft, key)


def note_not_modelled(draft: Draft) -> None:
    """Names each key that is set to something that moves memory unseen, and each plugin that acts by being listed."""
    for key, value in _given_keys(draft):
        if key.verdict == "not_modelled" and _moves_memory(key, value):
            text = f"`{key.name}: {_short(value)}` is not in the figures: {say(key)}"
            draft.note("not_modelled", key.name, text, direction=key.direction or "either")
    for package in sorted(draft.plugins):
        if package in _WHOLE_PLUGINS:
            name, _ = _WHOLE_PLUGINS[package]
            if not draft.notes.of(name):
                text = f"the plugin `{PLUGINS[package]}` is not in the figures: {say(KEYS[name])}"
                draft.note("not_modelled", "plugins", text, direction=KEYS[name].direction or "either")
    for index, plugin in enumerate(draft.get("plugins") or []):
        if not find_plugins([plugin]):
            text = f"the plugin `{plugin}` is not one of axolotl's own: what it changes is not in the figures"
            line = draft.line(f"plugins.{index}") or draft.line("plugins")
            draft.note("not_modelled", "plugins", text, line=line, direction="either")


def say(key: Key) -> str:
    """Effect and direction of a key that is not modelled, in one sentence."""
    return f"{key.effect} (the run {_DIRECTIONS[key.direction or 'either']})"


def _given_keys(draft: Draft) -> Iterator[tuple[Key, Any]]:
    for name, value in draft.values.items():
        yield KEYS[name], value
        if isinstance(value, Mapping):
            for inner, inner_value in value.items():
                nested = KEYS.get(f"{name}.{inner}")
                if nested is not None:
                    yield nested, inner_value


def _moves_memory(key: Key, value: Any) -> bool:
    return value is not None and value is not False and value not in ([], {}, "", key.default, *key.quiet)


def _coerced(draft: Draft, key: Key, value: Any, name: str) -> Any:
    try:
        return coerce(value, key.type)
    except ValueError:
        remedy = "remove the line to get the default" if value is None else "correct the value"
        raise ConfigError(
            problem="the value has the wrong type" if value is not None else "a value is missing",
            file=draft.name,
            line=draft.line(name),
            key=name,
            value=value,
            accepted=describe(key.type),
            remedy=remedy,
        ) from None


def _check_nested(draft: Draft, prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same for the fields of a nested block, where the table lists them."""
    fields = {name for name in KEYS if name.startswith(prefix + ".")}
    if not fields:
        return values
    checked: dict[str, Any] = {}
    for inner, value in values.items():
        name = f"{prefix}.{inner}"
        if prefix == "fsdp_config" and name not in fields:
            name = f"{prefix}.{str(inner).removeprefix('fsdp_')}"
        if name not in fields:
            _note_unknown(draft, f"{prefix}.{inner}")
            continue
        checked[name[len(prefix) + 1 :]] = _coerced(draft, KEYS[name], value, f"{prefix}.{inner}")
        if isinstance(value, dict):
            checked[name[len(prefix) + 1 :]] = _check_nested(draft, name, value)
    return checked


def _drop_unknown(draft: Draft, name: str) -> None:
    draft.dropped[name] = draft.values.pop(name)
    _note_unknown(draft, name)


def _note_unknown(draft: Draft, name: str) -> None:
    if name in GONE_KEYS:
        draft.note("ignored", name, f"`{name}` is gone from axolotl and has no effect: {GONE_KEYS[name]}")
        return
    nearest = nearest_key(name)
    hint = f"; did you mean `{nearest}`?" if nearest else ""
    draft.note("ignored", name, f"axolotl does not know `{name}` and drops it{hint}")


def _note_missing_plugin(draft: Draft, key: Key) -> None:
    text = f"`{key.name}` has no effect: its plugin is not listed. Add `{PLUGINS[key.plugin]}` to `plugins:`"
    draft.note("warning", key.name, text)


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
