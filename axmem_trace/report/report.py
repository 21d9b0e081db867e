"""`Report`: all results of an estimate, and the methods to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from axmem_trace.notes import Note
from axmem_trace.report.accuracy import Accuracy
from axmem_trace.report.codec import decode_report, encode
from axmem_trace.report.device_range import DeviceRange
from axmem_trace.report.logged import LoggedLine
from axmem_trace.report.moments import Moment
from axmem_trace.report.rank_types import Division, MachineUse, RankUse
from axmem_trace.report.row_folding import fold_modules
from axmem_trace.report.run_types import (
    SCHEMA_VERSION,
    AxolotlRelease,
    BatchShape,
    Choice,
    ModelSummary,
    Refusal,
    TargetGpu,
)
from axmem_trace.report.types import (
    AfterLoad,
    Buckets,
    DtypeRow,
    Engine,
    Holder,
    Host,
    ModuleRow,
    OutOfMemory,
    Peak,
    PhaseUse,
    Resident,
    TimelinePoint,
)
from axmem_trace.report.varying import VaryingRows
from axmem_trace.report.verdict import Verdict
from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """All results of an estimate. `make_report` makes it. A report that is read from its own JSON is equal to it."""

    schema_version: int = SCHEMA_VERSION
    """Increased when a field changes its meaning or is removed; not for new fields."""
    run: Mapping[str, str]
    """The run's settings, in words: `config`, `adapter`, `quantisation`, `optimizer`, ..."""
    model: ModelSummary
    batch: BatchShape
    gpu: TargetGpu
    peak: Peak
    fits: bool | None
    """Whether `peak.device_bytes` is at most `gpu.memory_bytes` minus `gpu.margin_bytes`, and no request failed. None:
    no card was named, or something that is not modelled could change the answer (see `why`)."""
    why: str = ""
    """Why there is no answer although a card was named: what is not in the figures, and whether the run needs more or
    less because of it."""
    verdict: Verdict = ""
    """`fits` in words; empty if no card was named."""
    tight_because: str = ""
    """What a run whose verdict is `tight` may need in addition, and why; else empty."""
    headroom_bytes: int | None
    """Free memory of the card at the peak; negative if the run does not fit; None without a card."""
    needed_bytes: int = 0
    """The bytes that the verdict compares with the card: `peak.device_bytes`, or more if another rank, an engine on the
    same card or batches of different lengths need more."""
    device_range: DeviceRange = field(default_factory=DeviceRange)
    """The range around `needed_bytes` in which measured runs were."""
    varying_rows: VaryingRows | None = None
    """Reserved memory with batches of different lengths; None: all rows are full, or it was not simulated."""
    out_of_memory: OutOfMemory | None
    """The request that failed on this card; None if none failed."""
    engine: Engine | None = None
    """An engine that generates on the same card; None without one, or if no card was named."""
    after_load: AfterLoad
    phases: Mapping[str, PhaseUse]
    """`load`, `step_1`, `step_2` and, if they are recorded, `eval` and `save`, in order of time."""
    logged: tuple[LoggedLine, ...] = ()
    """The lines that axolotl will log, for rank 0; empty with TRL's trainers, which do not log memory."""
    buckets: Buckets
    ranks: tuple[RankUse, ...] = ()
    """On several GPUs: all ranks; ranks with shards of equal sizes share a row. Empty on one GPU."""
    machine: MachineUse | None = None
    """On several GPUs: host memory of one machine; None on one GPU."""
    division: tuple[Division, ...] = ()
    """On several GPUs: what is sharded, what is replicated and what is gathered, for rank 0; empty on one GPU."""
    holders: tuple[Holder, ...] = ()
    """Memory at the peak by names that a user knows, the largest first."""
    resident: Resident
    host: Host
    modules: tuple[ModuleRow, ...]
    dtypes: tuple[DtypeRow, ...]
    timeline: tuple[TimelinePoint, ...]
    """A reduced number of points: the highest of each range of ticks. The peak is always included."""
    moments: tuple[Moment, ...] = ()
    """Fewer points than the timeline, each with the memory that was allocated then; empty if they were not
    requested."""
    choices: Mapping[str, Choice]
    """The values that are used, by their field in the recipe (`checkpointing.enabled`), and the reasons."""
    refusals: tuple[Refusal, ...] = ()
    """All reasons why the run can't run. If there is one, the command line's exit code is 2."""
    notes: tuple[Note, ...]
    versions: Mapping[str, str]
    """Versions of this package and of the traced libraries."""
    elapsed_seconds: Mapping[str, float]
    """Seconds by stage of the estimate."""
    axolotl: AxolotlRelease = field(default_factory=AxolotlRelease)
    """The release of axolotl whose rules the figures follow."""
    accuracy: Accuracy = field(default_factory=Accuracy)
    """How far the predictions for measured runs of this kind were from the measured figures."""

    def by_module(self, depth: int | None = None) -> tuple[ModuleRow, ...]:
        """The modules. Those deeper than `depth` are added to their ancestors, so that sums stay the same. None: all
        modules.

        A module's depth is the number of parts of its name between dots; depth 0 is only the root.
        """
        return self.modules if depth is None else fold_modules(self.modules, depth)

    def to_dict(self) -> dict[str, Any]:
        """The report in the form of its JSON, as plain dicts, lists, strings and numbers."""
        encoded = encode(self)
        assert isinstance(encoded, dict)
        return encoded

    def to_json(self) -> str:
        """The report as JSON text, as `report.schema.json` describes it."""
        from axmem_trace.render.json import render_json

        return render_json(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report from a text of `to_json`. Fields that this version does not know are ignored.

        Raises:
            ValueError: the text is not a report, or has a newer schema.
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

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the timeline with matplotlib, stacked by purpose, on these axes or on a new figure.

        Raises:
            ImportError: matplotlib is not installed (`pip install 'axmem_trace[plot]'`).
            ValueError: this is a brief report, which has no timeline.
        """
        from axmem_trace.render.plot import plot_timeline

        return plot_timeline(self, axes)

    @cached_property
    def by_kind(self) -> dict[str, tuple[Note, ...]]:
        """The notes of each kind, in the order in which they were made."""
        kinds = dict.fromkeys(note.kind for note in self.notes)
        return {kind: tuple(note for note in self.notes if note.kind == kind) for kind in kinds}

    def __repr__(self) -> str:
        peak = self.peak
        return (
            f"<Report of {self.model.name}: {format_bytes(peak.allocated_bytes)} allocated, "
            f"{format_bytes(peak.reserved_bytes)} reserved, {format_bytes(peak.device_bytes)} on the card>"
        )

    def __str__(self) -> str:
        from axmem_trace.render.text import render_text

        return render_text(self)

    def _repr_html_(self) -> str:
        from axmem_trace.render.html.page import render_html

        return render_html(self)
