"""The table of keys (`keys.json`): type, default and verdict of every field of axolotl's schema and of its plugins.

A verdict says what this tool does with a key:

- `modelled`: it becomes a field of the recipe and moves the figures;
- `none`: it has no effect on GPU memory (or axolotl refuses it, or it only names what other keys use);
- `not_modelled`: it moves memory and the figures don't show it; `effect` and `direction` say how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Verdict = Literal["modelled", "none", "not_modelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One row. `name` is dotted for nested keys (`trl.beta`)."""

    name: str
    type: str
    verdict: Verdict
    default: Any = None
    plugin: str = ""
    """Package of the axolotl integration whose plugin must be listed for the key to live."""
    effect: str = ""
    direction: Literal["", "more", "less", "either"] = ""
    """Of `not_modelled`: the run needs more or less GPU memory than the figures say."""
    quiet: tuple[Any, ...] = ()
    """Values that change nothing, besides null, false and the default."""


@cache
def _table() -> dict[str, Any]:
    text = resources.files("axmem_trace.config.document").joinpath("keys.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _keys() -> dict[str, Key]:
    rows = {}
    for name, row in _table()["keys"].items():
        rows[name] = Key(name=name, **{**row, "quiet": tuple(row.get("quiet", ()))})
    return rows


KEYS: dict[str, Key] = _keys()
AXOLOTL_VERSION: str = _table()["axolotl_version"]
PLUGINS: dict[str, str] = _table()["plugins"]
"""Package name of each known integration -> its plugin's full name."""


def siblings(name: str) -> list[str]:
    """The known keys of the same block."""
    prefix, _, _ = name.rpartition(".")
    return [key for key in KEYS if key.rpartition(".")[0] == prefix]
