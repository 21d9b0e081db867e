"""Folding of module rows: fewer rows with the same sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axmem_trace.report.types import ModuleRow

SUMMED = tuple(
    """
    parameters trainable_parameters weight_bytes gradient_bytes optimizer_bytes activation_bytes kept_bytes
    output_bytes sharded_bytes num_modules
    """.split()
)


def depth_of(name: str) -> int:
    """Number of parts of a dotted name; the root (`""`) has none.

    >>> depth_of(""), depth_of("model.layers.0")
    (0, 3)
    """
    return name.count(".") + 1 if name else 0


def fold_modules(rows: Iterable[ModuleRow], depth: int) -> tuple[ModuleRow, ...]:
    """Adds rows deeper than `depth` to their ancestor at that depth. The result is at the position of the first of
    them."""
    folded: dict[str, list[ModuleRow]] = {}
    for row in rows:
        name = ".".join(row.name.split(".")[:depth]) if depth else ""
        folded.setdefault(name, []).append(row)
    return tuple(_merge(name, members) for name, members in folded.items())


def group_repeated(rows: Iterable[ModuleRow]) -> tuple[ModuleRow, ...]:
    """Merges rows whose names differ only in a number: 32 layers become `layers.{0-31}`, at the position of the
    first."""
    groups: dict[tuple[str, str], list[ModuleRow]] = {}
    for row in rows:
        pattern = ".".join("#" if part.isdecimal() else part for part in row.name.split("."))
        groups.setdefault((pattern, row.class_name), []).append(row)
    return tuple(_merge(_span(members), members) for members in groups.values())


def _merge(name: str, members: list[ModuleRow]) -> ModuleRow:
    head = next((row for row in members if row.name == name), members[0])
    class_name = head.class_name if head.name == name or len({row.class_name for row in members}) == 1 else ""
    sums = {column: sum(getattr(row, column) for row in members) for column in SUMMED}
    return replace(head, name=name, class_name=class_name, **sums)


def _span(members: list[ModuleRow]) -> str:
    """The common name of rows that differ only in numbers. Each number is replaced by its range, or by its values if
    there are few."""
    if len(members) == 1:
        return members[0].name
    columns = zip(*(row.name.split(".") for row in members), strict=True)
    return ".".join(_values(set(parts)) for parts in columns)


def _values(parts: set[str]) -> str:
    if len(parts) == 1:
        return next(iter(parts))
    numbers = sorted(map(int, parts))
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    listed = ",".join(map(str, numbers))
    return f"{{{listed}}}" if len(listed) <= 16 else f"{{{len(numbers)} of {numbers[0]}-{numbers[-1]}}}"
