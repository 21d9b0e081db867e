"""The report's tables as rows of strings. Text and HTML print the same tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axmem_trace.render.describe import describe_moment
from axmem_trace.report.row_folding import group_repeated
from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    from axmem_trace.report.report import Report
    from axmem_trace.report.types import Buckets, DtypeRow, ModuleRow, PhaseUse, Resident

NUM_TOP_MODULES = 12
DEFAULT_DEPTH = 5
"""The number of parts of a module's name that are shown if no depth is given: `base_model.model.model.layers.3`."""
PEFT_PREFIX = "base_model.model."
"""The names of peft's wrappers around the base model. Printed names leave them out."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers (right-aligned) or words. It is left out on a terminal narrower than `from_width`."""

    label: str
    number: bool = True
    from_width: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with one cell for each column. `total` is the row of sums; `()` if there are no sums."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    footnote: str = ""


def make_tables(report: Report, depth: int | None = None) -> list[Table]:
    """All tables in the order of reading."""
    return [
        buckets_table(report),
        resident_table(report),
        *([ranks_table(report), division_table(report)] if report.ranks else []),
        phases_table(report),
        dtypes_table(report),
        modules_table(report, depth),
    ]


def _sized(nbytes: int) -> tuple[str, str]:
    return format_bytes(nbytes), f"{nbytes:,}"


def _shown(sizes: Buckets | Resident) -> list[str]:
    """All names, without the reference if there is none."""
    return [name for name in sizes.__slots__ if name != "reference" or sizes.reference]


_SIZE_COLUMNS = (Column("size"), Column("bytes", from_width=50))


def buckets_table(report: Report) -> Table:
    """Blocks alive at the peak."""
    rows = tuple((name, *_sized(getattr(report.buckets, name))) for name in _shown(report.buckets))
    return Table(
        "Alive at the peak",
        (Column("bucket", number=False), *_SIZE_COLUMNS),
        rows,
        total=("sum", *_sized(report.buckets.total)),
    )


def resident_table(report: Report) -> Table:
    """The maximum of each kind of memory on the GPU, and memory outside the GPU."""
    rows = [(name, *_sized(getattr(report.resident, name))) for name in _shown(report.resident)]
    for device, words in (("cpu", "in host memory"), ("managed", "in managed memory")):
        there = getattr(report.host, device)
        if there.peak_bytes:
            rows.append((f"{words} (not on the GPU)", *_sized(there.peak_bytes)))
    return Table(
        "Maximum of each, at any time",
        (Column("what", number=False), *_SIZE_COLUMNS),
        tuple(rows),
        footnote="tensor bytes, before the allocator rounds them up to blocks of 512",
    )


def ranks_table(report: Report) -> Table:
    """The ranks of a run on several GPUs. Ranks with shards of equal sizes share a row."""
    rows = []
    for use in report.ranks:
        name = f"rank{'s' if use.count > 1 else ''} {use.ranks}"
        words = ["the most"] if use.worst and len(report.ranks) > 1 else []
        words += ["at most"] if use.basis == "at most" else []
        sizes = (use.allocated_bytes, use.reserved_bytes, use.device_bytes, use.host_bytes)
        rows.append((name, *map(format_bytes, sizes), describe_moment(use.phase, use.step), ", ".join(words)))
    columns = (
        Column("ranks", number=False),
        Column("allocated"),
        Column("reserved"),
        Column("nvidia-smi"),
        Column("host memory", from_width=80),
        Column("highest in", number=False, from_width=90),
        Column("", number=False, from_width=60),
    )
    return Table("Ranks: those with parts of equal sizes in one row", columns, tuple(rows), footnote=_machine(report))


def _machine(report: Report) -> str:
    """Host memory of one machine, in words."""
    use = report.machine
    if use is None:
        return ""
    loading, held = format_bytes(use.loading_bytes), format_bytes(use.held_bytes)
    return (
        f"host of a machine with {use.gpus} GPUs: up to {loading} while loading ({use.why}); {held} held by its ranks"
    )


def division_table(report: Report) -> Table:
    """What is sharded, what every rank has in full, and what rank 0 gathers for a short time."""
    rows = tuple(
        (row.name, *map(format_bytes, (row.sharded_bytes, row.replicated_bytes, row.gathered_bytes)))
        for row in report.division
    )
    columns = (Column("what", number=False), Column("sharded"), Column("replicated"), Column("gathered"))
    return Table(
        "Maximum of each on a rank: its part, or the whole",
        columns,
        rows,
        footnote="gathered: whole for a while, by exchange among the ranks",
    )


def phases_table(report: Report) -> Table:
    """The most live bytes of each phase, the allocator's bytes, and the bytes at the end."""

    def row(name: str, use: PhaseUse) -> tuple[str, ...]:
        return (
            name,
            format_bytes(use.allocated_bytes),
            format_bytes(use.reserved_bytes),
            format_bytes(use.end_bytes),
            ", ".join(part for part in (use.module, use.op) if part),
        )

    rows = []
    for name, use in report.phases.items():
        rows.append(row(name.replace("_", " "), use))
        rows += [row(f"  {part}", inner) for part, inner in use.phases.items()]
    columns = (
        Column("phase", number=False),
        Column("allocated"),
        Column("reserved"),
        Column("at its end", from_width=60),
        Column("highest in", number=False, from_width=90),
    )
    return Table("Phases", columns, tuple(rows))


def dtypes_table(report: Report) -> Table:
    """All parameters and buffers."""

    def numbers(rows: Sequence[DtypeRow]) -> tuple[str, ...]:
        tensors, elements = sum(row.tensors for row in rows), sum(row.elements for row in rows)
        return f"{tensors:,}", f"{elements:,}", *_sized(sum(row.bytes for row in rows))

    columns = (
        Column("kind", number=False),
        Column("dtype", number=False),
        Column("trains", number=False, from_width=50),
        Column("tensors", from_width=96),
        Column("elements", from_width=80),
        Column("size"),
        Column("bytes", from_width=96),
    )
    base = report.run.get("base", "").partition(",")[0]
    rows = tuple(
        (row.kind, _stored(row, base), "yes" if row.trainable else "no", *numbers([row])) for row in report.dtypes
    )
    total = ("sum", "", "", *numbers(report.dtypes))
    return Table("Parameters and buffers on the GPU, as stored", columns, rows, total)


def _stored(row: DtypeRow, base: str) -> str:
    """The dtype. If several weights are packed into one element, both formats: `nf4 in uint8`."""
    if row.logical_elements <= row.elements:
        return row.dtype
    return f"{base if base in ('nf4', 'fp4') else 'packed'} in {row.dtype}"


def modules_table(report: Report, depth: int | None = None) -> Table:
    """The modules with the most memory; repeated layers share a row. With `depth`, all modules down to this depth."""
    folded = report.by_module(DEFAULT_DEPTH if depth is None else depth)
    grouped = [row for row in group_repeated(folded) if row.held_bytes]
    shares = bool(report.ranks)
    ranked = grouped if depth is not None else sorted(grouped, key=lambda row: -row.held_bytes)
    shown = ranked if depth is not None else ranked[:NUM_TOP_MODULES]
    rest = ranked[len(shown) :]
    rows = [_module_cells(_module_label(row.name), row.class_name, [row], shares=shares) for row in shown]
    if rest:
        rows.append(_module_cells(f"({len(rest)} more)", "", rest, shares=shares))
    held_as = (Column("weights are", number=False, from_width=60),) if shares else ()
    columns = (
        Column("module", number=False),
        Column("class", number=False, from_width=130),
        *held_as,
        Column("weights", from_width=60),
        Column("gradients", from_width=96),
        Column("optimizer", from_width=96),
        Column("activations", from_width=60),
        Column("together"),
    )
    footnote = "--depth N shows deeper modules, --format json has every one"
    span = next((span for row in shown for span in re.findall(r"\{.*?\}", row.name)), "")
    if span:
        footnote = f"{span}: all of these together; {footnote}"
    if any(row.name.startswith(PEFT_PREFIX) for row in shown):
        footnote += f"; names are relative to {PEFT_PREFIX[:-1]}"
    return Table(
        "Modules: memory of each without its submodules, activations at the peak",
        columns,
        tuple(rows),
        total=_module_cells("sum", "", ranked, shares=shares),
        footnote=footnote,
    )


def _module_label(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX) or "(root)"


def _module_cells(name: str, class_name: str, rows: Sequence[ModuleRow], *, shares: bool) -> tuple[str, ...]:
    """The cells of a row. On several GPUs (`shares`), they include whether its weights are sharded."""
    columns = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes", "held_bytes")
    return (
        name,
        class_name,
        *([_held_as(rows)] if shares else []),
        *(format_bytes(sum(getattr(row, column) for row in rows)) for column in columns),
    )


def _held_as(rows: Sequence[ModuleRow]) -> str:
    """Whether the weights are sharded, replicated or partly sharded."""
    weights, sharded = sum(row.weight_bytes for row in rows), sum(row.sharded_bytes for row in rows)
    return "" if not weights else "sharded" if sharded == weights else "partly sharded" if sharded else "replicated"
