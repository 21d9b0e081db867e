"""What the report tells beside the numbers. Every stage may add notes; every note is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoteKind = Literal["traced", "ruled", "assumed", "not_modelled", "ignored", "warning"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One statement about how a figure came about, or about what is not in it.

    `kind` says what sort of statement it is:

    - `traced`: recorded from the libraries' own code;
    - `ruled`: a formula of ours for a kernel whose code cannot run here; `text` names its source;
    - `assumed`: a value nobody can know from the configuration (CUDA context, routing balance);
    - `not_modelled`: a key that moves memory and is not in the figures; `text` says what it would do;
    - `ignored`: a key that has no effect, or that axolotl does not know;
    - `warning`: the run will not do what its author seems to expect.
    """

    kind: NoteKind
    key: str
    text: str
    bytes: int = 0
    line: int = 0
    """1-based line of `key` in the configuration file; 0 where there is none."""
