"""`Draft`: a configuration before it becomes a `Recipe`. It has the values with axolotl's defaults, the line of each, notes
about them, and the reasons why the run can't run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from axmem_trace.config.axolotl.releases import NEWEST, Release
from axmem_trace.config.document.key_table import Key, known_keys, known_plugins
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Direction, Note, NoteKind, Notes, RefusalNote, Touches
from axmem_trace.recipe.lines import as_error, find_written, place_note
from axmem_trace.recipe.recipe import Origin, Reason, Written

T = TypeVar("T")
MAX_VALUE_LENGTH = 60


@dataclass
class Draft:
    """The values of a configuration, and what has been found out about them so far.

    A key that is given as null counts as given: axolotl's defaults apply only to absent keys (pydantic).
    Errors are collected, so that one run reports all of them. `refuse` adds an error that leaves the figures valid; `fail`
    adds one without whose correction there are no figures.
    """

    name: str
    values: dict[str, Any]
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The values as the user wrote them."""
    written: dict[str, Written] = field(default_factory=dict)
    """Where the user wrote each key. The names are those of `values`."""
    release: Release = NEWEST
    """The release of axolotl whose rules apply."""
    directory: Path | None = None
    plugins: frozenset[str] = frozenset()
    """Packages of the active plugins, listed or not: `liger`, `kernels`, ..."""
    dropped: dict[str, Any] = field(default_factory=dict)
    """Given keys that axolotl drops after validation: unknown keys, and keys of a plugin that is not listed."""
    notes: Notes = field(default_factory=Notes)
    strict: list[Note] = field(default_factory=list)
    """Notes that `--strict` turns into errors, in addition to the notes on keys that are ignored or not modelled."""
    errors: list[ConfigError] = field(default_factory=list)
    spoiled: dict[str, bool] = field(default_factory=dict)
    """Keys whose value is missing or of the wrong type, and was removed -> true if there are no figures without it."""
    reasons: dict[str, Reason] = field(default_factory=dict)

    @property
    def keys(self) -> Mapping[str, Key]:
        """The keys that this release of axolotl knows, with this package's plugin."""
        return known_keys(self.release.version)

    @property
    def plugin_names(self) -> Mapping[str, str]:
        """Package of each plugin that this release of axolotl has -> its full name."""
        return known_plugins(self.release.version)

    def get(self, key: str) -> Any:
        """The value of a top-level key: as given (null is None), else axolotl's default, else None."""
        if key in self.values:
            return self.values[key]
        known = self.keys.get(key)
        return known.default if known and self.is_live(key) else None

    def sub(self, key: str) -> dict[str, Any]:
        """The mapping that a key contains; empty if there is none."""
        value = self.get(key)
        return dict(value) if isinstance(value, Mapping) else {}

    def has(self, key: str) -> bool:
        """Given with a value other than null."""
        return self.values.get(key) is not None

    def is_live(self, key: str) -> bool:
        """False for a key of a plugin that `plugins` does not list."""
        known = self.keys.get(key)
        return known is not None and (not known.plugin or known.plugin in self.plugins)

    def line(self, key: str) -> int:
        """The key's line in the file; 0 if the file does not have it."""
        return self.written[key].line if key in self.written else 0

    def is_overridden(self, key: str) -> bool:
        """True if `--set` gave the key."""
        return key in self.written and bool(self.written[key].flag)

    def rename(self, old: str, new: str) -> None:
        """Records that the user wrote the key `new`, and all keys nested in it, under the name `old`."""
        inside = [key for key in self.written if key == old or key.startswith(old + ".")]
        self.written.update({new + key[len(old) :]: self.written[key] for key in inside})

    def origin(self, key: str) -> Origin:
        """The origin of a key: the command line, the file or none."""
        if self.is_overridden(key):
            return "override"
        return "config" if key in self.values else "default"

    def note(
        self,
        kind: NoteKind,
        key: str,
        text: str,
        *,
        line: int = 0,
        direction: Direction = "",
        touches: Touches = "",
    ) -> Note:
        """Adds a note, unless an equal one exists."""
        line = line or self.line(key)
        note = Note(kind=kind, key=key, text=text, line=line, direction=direction, touches=touches)
        self.notes.append(note)
        return note

    def reason(self, field_path: str, value: object, text: str, *, key: str = "", origin: Origin | None = None) -> None:
        """Adds the reason for the value of a recipe's field; `key` is the YAML key that decides it, if there is one."""
        chosen = origin or (self.origin(key) if key else "derived")
        self.reasons[field_path] = Reason(value=str(value), text=text, origin=chosen, line=self.line(key))

    def reason_of_key(self, field_path: str, value: object, key: str) -> None:
        """The simple case: the field is the key's value, or axolotl's default for it."""
        given = key in self.values
        self.reason(field_path, value, f"`{key}`" if given else f"axolotl's default for `{key}`", key=key)

    # -- errors -------------------------------------------------------------------------------------------------------

    def refuse(self, problem: str, key: str, *, remedy: str = "") -> None:
        """Adds a reason why the run can't run. Figures are still computed.

        The figures do not depend on the reason, or `problem` says for which configuration they are.
        """
        refusal = RefusalNote(key=key, text=problem, remedy=remedy)
        if find_written(self.written, key).key not in self.spoiled:
            self.notes.append(refusal)

    def fail(self, error: ConfigError) -> None:
        """Adds a reason why there are no figures, and continues, so that further reasons are found.

        An error is not added if it follows from a value that was already refused.
        """
        if not error.flag and error.key.partition(".")[0] in {*self.keys, *self.raw}:
            error.file = error.file or self.name
        known = any((each.key, each.problem) == (error.key, error.problem) for each in self.errors)
        if not known and not self.spoiled.get(error.key):
            self.errors.append(error)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside this context, a `ConfigError` is collected instead of raised."""
        try:
            yield
        except ConfigError as error:
            self.fail(error)

    def attempt(self, derive: Callable[..., T], *arguments: Any, default: T, **options: Any) -> T:
        """The result of `derive`. If it fails, the error is collected and `default` is returned."""
        with self.collecting():
            return derive(*arguments, **options)
        return default

    def raise_errors(self) -> None:
        """Raises all collected errors as one, if `fail` added any. The refusals are part of it."""
        if not self.errors:
            return
        refusals = [place_note(note, self.written) for note in self.notes if isinstance(note, RefusalNote)]
        explained = {error.key for error in self.errors} & self.spoiled.keys()
        refusals = [refusal for refusal in refusals if refusal.key not in explained]
        first, *others = self.errors
        first.others += (*others, *(as_error(refusal, self.name) for refusal in refusals))
        raise first

    def error(
        self, problem: str, key: str = "", *, accepted: str = "", remedy: str = "", details: tuple[str, ...] = ()
    ) -> ConfigError:
        """A `ConfigError` about a key, with its line, its value and the name that the user gave it."""
        found = find_written(self.written, key) if key else Written(key="")
        return ConfigError(
            problem=problem,
            file=self.name,
            line=found.line,
            key=found.key,
            value=self._value_of(key, found),
            accepted=accepted,
            remedy=remedy,
            details=details,
            flag=found.flag,
        )

    def _value_of(self, key: str, found: Written) -> Any:
        """The value as written, else the current value."""
        name, *inner = (found.key if found.key.partition(".")[0] in self.raw else key).split(".")
        value = self.raw.get(name, self.values.get(name, self.dropped.get(name)))
        for part in inner:
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, Mapping) else None
        return value


def shortened(value: Any) -> str:
    """A value as in the YAML, shortened if it is long."""
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."
