"""A comparison as text for a terminal, as Markdown for a pull request, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    from axmem_trace.advice.compare import Column, Comparison, Row

SCHEMA_VERSION = 1
SAME = "~"
"""Shown instead of a value that equals the baseline's."""


def render_comparison(comparison: Comparison, form: str) -> str:
    """The comparison in the chosen form: `text`, `markdown` or `json`."""
    if form == "json":
        return json.dumps(_to_dict(comparison), indent=2) + "\n"
    letters = ascii_uppercase[: len(comparison.columns)]
    heads = ["", *letters]
    draw = _markdown_table if form == "markdown" else _text_table
    mark = "- " if form == "markdown" else ""
    runs = zip(letters, comparison.columns, strict=False)
    parts = ["".join(f"{mark}{letter}  {_describe(column)}\n" for letter, column in runs)]
    if comparison.changed:
        settings = [[name, *(value or "-" for value in values)] for name, values in comparison.changed.items()]
        parts.append(draw("changed settings", heads, settings, numbers=False))
    for title, rows in comparison.sections.items():
        if rows:
            parts.append(draw(title, heads, [_cells(row) for row in rows], numbers=True))
    verdicts = [column.verdict for column in comparison.columns]
    if any(verdicts):
        parts.append(
            draw("verdict", heads, [["on the card", *(verdict or "-" for verdict in verdicts)]], numbers=False)
        )
    if not comparison.changed and all(row.spread == 0 for rows in comparison.sections.values() for row in rows):
        parts.append("nothing differs\n")
    if comparison.hidden:
        parts.append("beside the settings:\n" + "".join(f"{mark or '  '}{each}\n" for each in comparison.hidden))
    return "\n".join(parts)


def _describe(column: Column) -> str:
    return f"{column.label} (measured)" if column.measured else column.label


def _cells(row: Row) -> list[str]:
    """The baseline's value, then each other value with its difference."""
    base = row.values[0]
    return [row.name, _size(base), *(_with_difference(value, base) for value in row.values[1:])]


def _with_difference(value: int | None, base: int | None) -> str:
    if value is None or base is None:
        return _size(value)
    if value == base:
        return f"{_size(value)}  {SAME}"
    sign, difference = ("+" if value > base else "-"), abs(value - base)
    share = f" {sign}{difference / base:.1%}" if base else ""
    return f"{_size(value)}  {sign}{format_bytes(difference)}{share}"


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)


def _text_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool) -> str:
    widths = [max(len(line[index]) for line in (heads, *rows)) for index in range(len(heads))]

    def draw(line: Sequence[str]) -> str:
        cells = [f"{line[0]:{widths[0]}}"]
        cells += [
            f"{cell:>{size}}" if numbers else f"{cell:{size}}" for cell, size in zip(line[1:], widths[1:], strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([f"{title}", *map(draw, (heads, *rows))]) + "\n"


def _markdown_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool) -> str:
    def draw(line: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"

    rule = f"| --- |{(' ---: |' if numbers else ' --- |') * (len(heads) - 1)}"
    return "\n".join([draw([title, *heads[1:]]), rule, *map(draw, rows)]) + "\n"


def _to_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "columns": [
            {"label": each.label, "measured": each.measured, "verdict": each.verdict} for each in comparison.columns
        ],
        "changed": {name: list(values) for name, values in comparison.changed.items()},
        "sections": {
            title: {row.name: list(row.values) for row in rows} for title, rows in comparison.sections.items()
        },
        "hidden": list(comparison.hidden),
    }
