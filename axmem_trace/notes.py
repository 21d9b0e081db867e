"""The texts of a report. Every stage may add notes; every note is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

NoteKind = Literal["traced", "ruled", "assumed", "not_modelled", "ignored", "warning", "refused"]
Direction = Literal["", "more", "less", "either"]
Touches = Literal["", "activations"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One statement: how a figure is calculated, or what the figure does not include.

    `kind` is the kind of statement:

    - `traced`: recorded from the libraries' own code;
    - `ruled`: a formula for a kernel whose code cannot run here; `text` names its source;
    - `assumed`: a value that is not known from the configuration (CUDA context, routing balance);
    - `not_modelled`: a key that changes memory, but is not in the figures; `text` says what it would do;
    - `ignored`: a key that has no effect, or that axolotl does not know;
    - `warning`: the run will not do what the user probably expects;
    - `refused`: a `RefusalNote`.

    Attributes:
        kind: as above.
        key: a key of the configuration, or a name for something without a key (`host.loading`).
        text: the statement.
        bytes: the size that the statement is about; 0: none.
    """

    kind: NoteKind
    key: str
    text: str
    bytes: int = 0
    line: int = 0
    """1-based line of `key` in the configuration file; 0 if there is none."""
    direction: Direction = ""
    """For `not_modelled`: whether the run needs more memory than shown, less, or either. Empty: the difference is too
    small to matter."""
    touches: Touches = ""
    """For `not_modelled`: the only things that it can change. Empty: it may change everything."""
    at_most_bytes: int = 0
    """For `not_modelled`: it changes the needed memory by at most this; 0: no bound is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalNote(Note):
    """One reason why the run is impossible: axolotl refuses the configuration, or the run certainly fails later.

    It does not change the figures; if it does, `text` says which configuration they are for. Any stage may add one to
    its notes. The report lists them separately from the other notes (`Report.refusals`), and the exit code is 2.
    """

    kind: NoteKind = "refused"
    value: str = ""
    """The value in the configuration, as text; empty if the key is not in it."""
    remedy: str = ""
    """What to do."""
    flag: str = ""
    """`--set`, if that set the key."""


class Notes:
    """A collection of notes, in the order in which they were added. Of equal notes, only one is kept; different notes
    are all kept.

    >>> notes = Notes()
    >>> for text in ("one", "two", "one"):
    ...     notes.append(Note(kind="warning", key="bf16", text=text))
    >>> [note.text for note in notes]
    ['one', 'two']
    """

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self._notes = dict.fromkeys(notes)

    def append(self, note: Note) -> None:
        """Adds a note, unless an equal one is there."""
        self._notes.setdefault(note)

    def extend(self, notes: Iterable[Note]) -> None:
        """Adds each of them."""
        self._notes.update(dict.fromkeys(note for note in notes if note not in self._notes))

    def of(self, key: str) -> tuple[Note, ...]:
        """The notes about a key."""
        return tuple(note for note in self if note.key == key)

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes)

    def __len__(self) -> int:
        return len(self._notes)

    def __contains__(self, note: object) -> bool:
        return note in self._notes

    def __repr__(self) -> str:
        return f"Notes({list(self)})"
