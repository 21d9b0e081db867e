"""The words of a report: choices, refusals, warnings and notes, as lines. Text and HTML print the same lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axmem_trace.units import format_bytes

if TYPE_CHECKING:
    from axmem_trace.notes import NoteKind
    from axmem_trace.report.report import Report
    from axmem_trace.report.run_types import Choice

NOTE_TITLES: dict[NoteKind, str] = {
    "not_modelled": "Not modelled: changes memory, and is not in the figures",
    "assumed": "Assumed",
    "ruled": "Ruled: formulas for kernels whose code cannot run here",
    "traced": "Traced: recorded from the libraries' own code",
    "ignored": "Ignored: without effect on memory, or unknown to axolotl",
}
"""The kinds of notes that follow the tables, in the order in which they are shown."""


def choice_lines(report: Report) -> list[tuple[str, str]]:
    """Each value that is used (`key = value`), and the reason for it."""

    def why(choice: Choice) -> str:
        return "; ".join(part for part in (_origin(choice.origin, choice.line), choice.text) if part)

    return [(f"{path} = {choice.value}", why(choice)) for path, choice in report.choices.items()]


def _origin(origin: str, line: int) -> str:
    words = {
        "config": "the configuration",
        "default": "default",
        "derived": "derived",
        "assume": "--assume",
        "override": "--set",
    }.get(origin, origin)
    return f"{words}, line {line}" if line else words


def alert_lines(report: Report) -> list[tuple[str, list[str]]]:
    """Texts near the verdict, each with a title and lines: the reasons why the run is impossible, and the warnings."""
    groups = [
        (f"THIS RUN CAN'T RUN: {describe_refusals(report)}", refusal_lines(report)),
        ("Warnings", _lines_of(report, "warning")),
    ]
    return [(title, lines) for title, lines in groups if lines]


def describe_refusals(report: Report) -> str:
    """The number of reasons, and their lines in the file."""
    count = len(report.refusals)
    places = sorted({refusal.line for refusal in report.refusals if refusal.line})
    text = "1 reason" if count == 1 else f"{count} reasons"
    return f"{text} (line{'s' if len(places) > 1 else ''} {', '.join(map(str, places))})" if places else text


def refusal_lines(report: Report) -> list[str]:
    """One line for each reason: key, line, value, reason and what to do."""
    lines = []
    for refusal in report.refusals:
        place = f" (line {refusal.line})" if refusal.line else ""
        value = f" = {refusal.value}" if refusal.value else ""
        remedy = f". What to do: {refusal.remedy}" if refusal.remedy else ""
        lines.append(f"{refusal.key}{value}{place}: {refusal.reason}{remedy}")
    return lines


def note_lines(report: Report) -> list[tuple[str, list[str]]]:
    """The other notes by kind, each kind with a title and lines."""
    groups = [(title, _lines_of(report, kind)) for kind, title in NOTE_TITLES.items()]
    return [(title, lines) for title, lines in groups if lines]


def _lines_of(report: Report, kind: NoteKind) -> list[str]:
    lines = []
    for note in report.by_kind.get(kind, ()):
        key = f"{note.key} (line {note.line})" if note.line else note.key
        size = f" [{format_bytes(note.bytes)}]" if note.bytes else ""
        size += f" [at most {format_bytes(note.at_most_bytes)} {note.direction}]" if note.at_most_bytes else ""
        lines.append(f"{key}: {note.text}{size}" if key else f"{note.text}{size}")
    return lines
