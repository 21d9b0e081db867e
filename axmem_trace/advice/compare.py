"""Compares runs: the settings that differ, and the effect on figures, holders, phases and modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from axmem_trace.report import Report
from axmem_trace.report.row_folding import group_repeated

MODULE_DEPTH = 5
_IN_WORDS = tuple(
    """
    model.base optimizer.name checkpointing. attention.kernel loss.path precision.autocast adapter.kind
    evaluation.enabled allocator.settings quantisation.
    """.split()
)
"""Values that are also in the description of the run."""
MIN_FIGURE_BYTES = 1 << 20
"""Figures smaller than this in every run (a step counter in host memory) are left out."""
NUM_ROWS = 8
"""The number of rows that are shown of a long section (holders, modules): those that differ most."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One run: an estimate, or a measurement (then most sections are empty).

    Attributes:
        sections: the rows of each section by its title; a row is a name and its bytes.
        settings: the values by name, as text.
        facts: other things that determine figures and may differ without being noticed: versions, card, the base
            model's configuration.
        verdict: whether it fits, in words; empty if no card was named.
    """

    label: str
    sections: Mapping[str, Mapping[str, int]]
    settings: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""
    measured: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One name with its value in each column; None if a column has none."""

    name: str
    values: tuple[int | None, ...]

    @property
    def spread(self) -> int:
        """The largest difference from the value of the first column."""
        base = self.values[0] or 0
        return max(abs((value or 0) - base) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All columns, compared with the first, the baseline.

    Attributes:
        changed: the settings that differ, by name, with the value in each column (empty: the setting is not there).
        sections: the rows of each section by its title. Long sections have only the rows that differ most.
        hidden: facts that differ although nobody changed them, as sentences.
    """

    columns: tuple[Column, ...]
    changed: Mapping[str, tuple[str, ...]]
    sections: Mapping[str, tuple[Row, ...]]
    hidden: tuple[str, ...]


def make_column(label: str, report: Report) -> Column:
    """The column of an estimate in a comparison."""
    peak = report.peak
    figures = {
        "max_allocated": peak.counted_bytes,
        "device_reserved": peak.reserved_bytes,
        "nvidia-smi": peak.device_bytes,
        "after loading": report.after_load.allocated_bytes,
        "host memory": report.host.cpu.peak_bytes,
    }
    phases = {name.replace("_", " "): use.allocated_bytes for name, use in report.phases.items()}
    modules = {row.name or "(root)": row.held_bytes for row in group_repeated(report.by_module(MODULE_DEPTH))}
    sections = {
        "figures": figures,
        "alive at the peak": {name: getattr(report.buckets, name) for name in report.buckets.__slots__},
        "largest holders": {holder.name: holder.bytes for holder in report.holders},
        "phases, allocated": phases,
        "modules": {name: nbytes for name, nbytes in modules.items() if nbytes},
    }
    gpu = report.gpu
    facts = {
        **report.versions,
        "card": gpu.name or "none named",
        "GPUs": str(gpu.count),
        "config.json": report.model.config_source,
    }
    return Column(
        label=label,
        sections=sections,
        settings=_settings(report),
        facts=facts,
        verdict=report.verdict,
    )


def _settings(report: Report) -> dict[str, str]:
    """The description of the run, and the values that are not in it."""
    words = {name: text for name, text in report.run.items() if name != "config"}
    values = {path: choice.value for path, choice in report.choices.items() if not path.startswith(_IN_WORDS)}
    return {"base model": report.model.name, **words, **values}


def compare(columns: Sequence[Column]) -> Comparison:
    """Everything that differs between the columns. The figures are always included.

    Raises:
        ValueError: fewer than two columns.
    """
    if len(columns) < 2:
        raise ValueError("a comparison needs two runs")
    counted = Counter(title for column in columns for title in column.sections)
    titles = [title for title, number in counted.items() if number > 1]
    return Comparison(
        columns=tuple(columns),
        changed=_differences(columns, lambda column: column.settings),
        sections={title: _rows(columns, title) for title in titles},
        hidden=tuple(_hidden(columns)),
    )


def _differences(
    columns: Sequence[Column], values_of: Callable[[Column], Mapping[str, str]]
) -> dict[str, tuple[str, ...]]:
    """The names whose values differ, among the columns that have them."""
    speaking = [index for index, column in enumerate(columns) if values_of(column)]
    names = dict.fromkeys(name for column in columns for name in values_of(column))
    found = {name: tuple(values_of(column).get(name, "") for column in columns) for name in names}
    return {name: values for name, values in found.items() if len({values[index] for index in speaking}) > 1}


def _rows(columns: Sequence[Column], title: str) -> tuple[Row, ...]:
    names = dict.fromkeys(name for column in columns for name in column.sections.get(title, {}))
    rows = [Row(name=name, values=tuple(_value(column, title, name) for column in columns)) for name in names]
    if title == "figures":
        return tuple(row for row in rows if max(value or 0 for value in row.values) >= MIN_FIGURE_BYTES)
    changed = sorted((row for row in rows if row.spread), key=lambda row: -row.spread)
    return tuple(changed[:NUM_ROWS])


def _value(column: Column, title: str, name: str) -> int | None:
    """The value of a row in a column. 0 if an estimate has the section but not the row: it has no such memory. None if
    nothing is known."""
    section = column.sections.get(title)
    return None if section is None else section.get(name, None if column.measured else 0)


def _hidden(columns: Sequence[Column]) -> list[str]:
    differing = _differences(columns, lambda column: column.facts)
    return [
        f"{name} differs: {', '.join(value or 'unknown' for value in values)}" for name, values in differing.items()
    ]
