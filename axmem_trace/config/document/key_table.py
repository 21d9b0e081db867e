"""The table of keys (`keys.json`): type, default and verdict of every field of axolotl's schema and of its plugins.

A verdict says what this tool does with a key:

- `modelled`: it becomes a field of the recipe and changes the figures;
- `none`: it has no effect on GPU memory (or axolotl refuses it, or it only names what other keys use);
- `not_modelled`: it changes memory, but the figures don't include it; `effect` and `direction` say how.

A row describes the newest release of axolotl. The same row has the differences of older releases: `since` (the first
release that knows the key), `until` (the last one), and `was` (release -> fields that differ in it and in older ones).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from packaging.version import Version

from axmem_trace.files import read_table

Verdict = Literal["modelled", "none", "not_modelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One row. `name` is dotted for nested keys (`trl.beta`)."""

    name: str
    type: str
    verdict: Verdict
    default: Any = None
    plugin: str = ""
    """The package of the axolotl integration whose plugin must be listed, or the key has no effect."""
    effect: str = ""
    direction: Literal["", "more", "less", "either"] = ""
    """For `not_modelled`: the run needs more or less GPU memory than the figures say."""
    touches: Literal["", "activations"] = ""
    """For `not_modelled`: the only kind of memory that the key changes; empty: it may change all kinds."""
    quiet: tuple[Any, ...] = ()
    """Values without effect, in addition to null, false and the default."""


OWN_PLUGIN = "axmem_trace"
"""This package's own plugin for axolotl. Its keys are in no release of axolotl."""
_OWN_PLUGIN_CLASS = "axmem_trace.MemoryPlugin"
_OWN_KEYS = {
    "memory_check": Key(name="memory_check", type="'warn'|'stop'|null", verdict="none", plugin=OWN_PLUGIN),
}


@cache
def _table() -> dict[str, Any]:
    return read_table("axmem_trace.config.document", "keys.json")


@cache
def keys_of(version: str) -> Mapping[str, Key]:
    """The keys of one release of axolotl, in the order of the table."""
    rows = {}
    for name, row in _table()["keys"].items():
        fields = _row_of(row, Version(version))
        if fields is not None:
            rows[name] = Key(name=name, **{**fields, "quiet": tuple(fields.get("quiet", ()))})
    return rows


def _row_of(row: dict[str, Any], version: Version) -> dict[str, Any] | None:
    """The row of a release; None if it does not know the key."""
    fields = dict(row)
    since, until, was = fields.pop("since", ""), fields.pop("until", ""), fields.pop("was", {})
    if (since and version < Version(since)) or (until and version > Version(until)):
        return None
    for last, older in sorted(was.items(), key=lambda item: Version(item[0]), reverse=True):
        if version <= Version(last):
            fields.update(older)
    return fields


@cache
def plugins_of(version: str) -> Mapping[str, str]:
    """Package of each integration that a release has -> its plugin's full name."""
    since = _table()["plugins_since"]
    return {
        package: name
        for package, name in _table()["plugins"].items()
        if Version(version) >= Version(since.get(package, "0"))
    }


@cache
def known_keys(version: str) -> Mapping[str, Key]:
    """The keys of one release of axolotl, and those of this package's plugin."""
    return {**keys_of(version), **_OWN_KEYS}


@cache
def known_plugins(version: str) -> Mapping[str, str]:
    """Package of each integration that a release has, and of this package's plugin -> the plugin's full name."""
    return {**plugins_of(version), OWN_PLUGIN: _OWN_PLUGIN_CLASS}


AXOLOTL_VERSION: str = _table()["axolotl_version"]
KEYS: Mapping[str, Key] = keys_of(AXOLOTL_VERSION)
"""The keys of the newest release."""


def siblings(name: str, keys: Mapping[str, Key] = KEYS) -> list[str]:
    """The known keys of the same block."""
    prefix, _, _ = name.rpartition(".")
    return [key for key in keys if key.rpartition(".")[0] == prefix]
