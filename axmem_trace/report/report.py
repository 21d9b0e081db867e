"""`Report`: everything an estimate has to say, and the ways to ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from axmem_trace.notes import Note
from axmem_trace.report.codec import decode_report, encode
from axmem_trace.report.row_folding import fold_modules
from axmem_trace.report.types import (
    AfterLoad,
    AxolotlRelease,
    BatchShape,
    Buckets,
    Choice,
    DtypeRow,
    Engine,
    Holder,
    Host,
    ModelSummary,
    ModuleRow,
    OutOfMemory,
    Peak,
    PhaseUse,
    Refusal,
    Resident,
    TargetGpu,
    TimelinePoint,
)
from axmem_trace.report.verdict import Verdict
from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
"""Raised when a field of the JSON changes its meaning or goes away; new fields don't raise it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Everything an estimate has to say. Made by `make_report`; reads back from its own JSON unchanged."""

    schema_version: int = SCHEMA_VERSION
    """Raised when a field changes its meaning or goes away; new fields don't raise it."""
    run: Mapping[str, str]
    """What was asked for, in words: `config`, `adapter`, `quantisation`, `optimizer`, ..."""
    model: ModelSummary
    batch: BatchShape
    gpu: TargetGpu
    peak: Peak
    fits: bool | None
    """Whether `peak.device_bytes` is within `gpu.memory_bytes` and no request failed. None: no card was named, or what is
    not modelled could turn the answer (`why` says what)."""
    why: str = ""
    """Why nothing can be said although a card was named: what is not in the figures, and whether it needs more or less."""
    verdict: Verdict = ""
    """`fits` in words; empty where no card was named."""
    headroom_bytes: int | None
    """Memory of the card that is left at the highest point; negative if it does not fit; None without a card."""
    out_of_memory: OutOfMemory | None
    """The request that failed on this card; None where none did."""
    engine: Engine | None = None
    """An engine that generates on the same card; None where there is none, or no card was named."""
    after_load: AfterLoad
    phases: Mapping[str, PhaseUse]
    """`load`, `step_1`, `step_2` and, where recorded, `eval`, in order of time."""
    buckets: Buckets
    holders: tuple[Holder, ...] = ()
    """What is alive at the peak by names that a user knows, the largest first."""
    resident: Resident
    host: Host
    modules: tuple[ModuleRow, ...]
    dtypes: tuple[DtypeRow, ...]
    timeline: tuple[TimelinePoint, ...]
    """Thinned: of each stretch of ticks, the moment of most live bytes. The peak is always among them."""
    choices: Mapping[str, Choice]
    """Values in force by their place in the recipe (`checkpointing.enabled`), and why."""
    refusals: tuple[Refusal, ...] = ()
    """Why the run can't run, all reasons. Where there is one, the command line's exit code is 2."""
    notes: tuple[Note, ...]
    versions: Mapping[str, str]
    """Of this package and of the libraries that were traced."""
    elapsed_seconds: Mapping[str, float]
    """By stage of the estimate."""
    axolotl: AxolotlRelease = field(default_factory=AxolotlRelease)
    """The release of axolotl whose rules the figures follow."""

    def by_module(self, depth: int | None = None) -> tuple[ModuleRow, ...]:
        """The modules, with those deeper than `depth` folded into their ancestors; sums stay. None folds nothing.

        A module's depth is the number of dots-separated parts of its name; depth 0 is the root alone.
        """
        return self.modules if depth is None else fold_modules(self.modules, depth)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract as plain dicts, lists, strings and numbers."""
        encoded = encode(self)
        assert isinstance(encoded, dict)
        return encoded

    def to_json(self) -> str:
        """The JSON contract (DESIGN: `schema_version`, `peak`, `buckets`, ...) as text."""
        from axmem_trace.render.json import render_json

        return render_json(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """A report from what `to_json` wrote. Fields that this version does not know are passed over.

        Raises:
            ValueError: the text is no report, or one of a newer schema.
        """
        return decode_report(cls, text, SCHEMA_VERSION)

    def to_pandas(self, table: Literal["modules", "timeline", "dtypes", "phases"] = "modules") -> pd.DataFrame:
        """One table of the report as a `pandas.DataFrame`; `modules` and `phases` are indexed by name.

        Raises:
            ImportError: pandas is not installed (`pip install pandas`).
            ValueError: there is no such table.
        """
        from axmem_trace.render.frames import make_frame

        return make_frame(self, table)

    @cached_property
    def by_kind(self) -> dict[str, tuple[Note, ...]]:
        """The notes of each kind, in the order in which they were made."""
        kinds = dict.fromkeys(note.kind for note in self.notes)
        return {kind: tuple(note for note in self.notes if note.kind == kind) for kind in kinds}

    def __repr__(self) -> str:
        peak = self.peak
        return (f"<Report of {self.model.name}: {format_bytes(peak.allocated_bytes)} allocated, "
                f"{format_bytes(peak.reserved_bytes)} reserved, {format_bytes(peak.device_bytes)} on the card>")  # fmt: skip

    def __str__(self) -> str:
        from axmem_trace.render.text import render_text

        return render_text(self)

    def _repr_html_(self) -> str:
        from axmem_trace.render.html.page import render_html

        return render_html(self)
