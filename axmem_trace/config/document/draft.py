"""A configuration on its way to a `Recipe`: values with axolotl's defaults, their lines, and what was said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from axmem_trace.config.document.key_table import KEYS
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Direction, Note, NoteKind, Notes
from axmem_trace.recipe.recipe import Reason

Origin = Literal["config", "default", "derived", "assume", "override"]


@dataclass
class Draft:
    """What the configuration says so far.

    A key that is given as null is *given*: axolotl's defaults fill in only for keys that are absent (pydantic).
    """

    name: str
    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    directory: Path | None = None
    overridden: frozenset[str] = frozenset()
    plugins: frozenset[str] = frozenset()
    """Names of the listed plugins' packages: `liger`, `kernels`, ..."""
    dropped: dict[str, Any] = field(default_factory=dict)
    """Given keys that axolotl drops after validation: unknown, or of a plugin that is not listed."""
    notes: Notes = field(default_factory=Notes)
    reasons: dict[str, Reason] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value of a top-level key: as given (null is None), else axolotl's default, else None."""
        if key in self.values:
            return self.values[key]
        known = KEYS.get(key)
        return known.default if known and self.is_live(key) else None

    def sub(self, key: str) -> dict[str, Any]:
        """A key that holds a mapping; empty where there is none."""
        value = self.get(key)
        return dict(value) if isinstance(value, Mapping) else {}

    def has(self, key: str) -> bool:
        """Given with a value other than null."""
        return self.values.get(key) is not None

    def is_live(self, key: str) -> bool:
        """False for a key of a plugin that `plugins` does not list."""
        known = KEYS.get(key)
        return known is not None and (not known.plugin or known.plugin in self.plugins)

    def line(self, key: str) -> int:
        """Where the key stands in the file; 0 where it does not."""
        return self.lines.get(key, 0)

    def origin(self, key: str) -> Origin:
        """Who said it: the command line, the file or nobody."""
        if key.split(".")[0] in self.overridden:
            return "override"
        return "config" if key in self.values else "default"

    def note(self, kind: NoteKind, key: str, text: str, *, line: int = 0, direction: Direction = "") -> None:
        """Adds a note, unless an equal one is there."""
        self.notes.append(Note(kind=kind, key=key, text=text, line=line or self.line(key), direction=direction))

    def reason(self, field_path: str, value: object, text: str, *, key: str = "", origin: Origin | None = None) -> None:
        """Says why the recipe's field has its value; `key` is the YAML key to blame, where there is one."""
        chosen = origin or (self.origin(key) if key else "derived")
        self.reasons[field_path] = Reason(value=str(value), text=text, origin=chosen, line=self.line(key))

    def reason_of_key(self, field_path: str, value: object, key: str) -> None:
        """The plain case: the field is the key's value, or axolotl's default for it."""
        given = key in self.values
        self.reason(field_path, value, f"`{key}`" if given else f"axolotl's default for `{key}`", key=key)

    def error(
        self, problem: str, key: str = "", *, accepted: str = "", remedy: str = "", details: tuple[str, ...] = ()
    ) -> ConfigError:
        """A `ConfigError` about a key, with its place and value."""
        top = key.split(".")[0]
        value = self.values.get(top, self.dropped.get(top)) if top == key else self.sub(top).get(key[len(top) + 1 :])
        return ConfigError(
            problem=problem,
            file=self.name,
            line=self.line(key) or self.line(top),
            key=key,
            value=value,
            accepted=accepted,
            remedy=remedy,
            details=details,
        )
