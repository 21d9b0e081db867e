"""The text report: it is equal to golden files, its sums are correct, and it is readable on any terminal."""

from __future__ import annotations

import io
import re

import pytest
from support.hand_made_run import make_hand_made_report

from axmem_trace.notes import NoteKind
from axmem_trace.render.describe import describe_fit, format_count
from axmem_trace.render.lines import NOTE_TITLES
from axmem_trace.render.text import clean, render_for_stream, render_text

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def section(text: str, title: str) -> list[str]:
    """The lines below a title, up to the next blank line."""
    lines = text.splitlines()
    start = lines.index(title) + 1
    return lines[start : lines.index("", start)]


def rows_and_sum(lines: list[str]) -> tuple[list[str], str]:
    """The data rows (between the two horizontal rules) and the row of sums (below them)."""
    rules = [number for number, line in enumerate(lines) if set(line.strip()) <= set("─-+ ") and line.strip()]
    assert len(rules) == 2
    return lines[rules[0] + 1 : rules[1]], lines[rules[1] + 1]


def last_number(line: str) -> int:
    return int(line.split()[-1].replace(",", ""))


@pytest.mark.parametrize("width", [40, 72, 100, 160])
def test_golden(width, assert_golden):
    assert_golden(f"hand_made_{width}.out", render_text(make_hand_made_report(24 << 30), full=True, width=width))


@pytest.mark.parametrize("title", ["Alive at the peak", "Parameters and buffers on the GPU, as stored"])
def test_printed_bytes_add_up(title):
    rows, total = rows_and_sum(section(render_text(make_hand_made_report(), full=True, width=100), title))
    assert len(rows) >= 4
    assert sum(map(last_number, rows)) == last_number(total)


def test_the_printed_peak_is_the_reports():
    report = make_hand_made_report()
    _, total = rows_and_sum(section(render_text(report, full=True), "Alive at the peak"))
    assert last_number(total) == report.peak.allocated_bytes


def test_printed_modules_add_up_except_for_rounding():
    """The rounding error of each printed size is at most half a unit of its last digit: 0.05 KiB here."""
    text = render_text(make_hand_made_report(), full=True, width=160)
    rows, total = rows_and_sum(section(text, "Modules: memory of each without its submodules, activations at the peak"))

    def sizes(line: str) -> list[float]:
        return [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (B|KiB|MiB|GiB)\b", line)]

    for column in range(5):
        found = sum(sizes(row)[column] for row in rows)
        assert found == pytest.approx(sizes(total)[column], abs=0.05 * 1024 * (len(rows) + 1))


def test_only_the_largest_modules_are_shown_and_the_rest_is_summed(monkeypatch):
    monkeypatch.setattr("axmem_trace.render.tables.NUM_TOP_MODULES", 2)
    title = "Modules: memory of each without its submodules, activations at the peak"
    rows, total = rows_and_sum(section(render_text(make_hand_made_report(), full=True, width=160), title))
    assert [row.split()[0] for row in rows] == ["lm_head", "model.layers.{0-1}.proj.lora_A", "(5"]
    assert total.endswith("115.0 KiB")
    all_rows, same_total = rows_and_sum(
        section(render_text(make_hand_made_report(), full=True, width=160, depth=9), title)
    )
    assert len(all_rows) == 7
    assert same_total.split() == total.split()


def test_depth_folds():
    rows, _ = rows_and_sum(
        section(
            render_text(make_hand_made_report(), full=True, depth=1),
            "Modules: memory of each without its submodules, activations at the peak",
        )
    )
    assert [row.split()[0] for row in rows] == ["(root)", "model", "lm_head"]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", range(40, 201, 20))
def test_no_line_is_wider_than_the_terminal(width, ascii_only):
    text = render_text(make_hand_made_report(24 << 30), full=True, width=width, ascii_only=ascii_only)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert text.isascii() or not ascii_only


def test_extreme_widths_are_limited():
    assert max(map(len, render_text(make_hand_made_report(), full=True, width=1).splitlines())) <= 40
    assert max(map(len, render_text(make_hand_made_report(), full=True, width=10_000).splitlines())) <= 200


def test_colour_does_not_change_the_text():
    plain, coloured = (render_text(make_hand_made_report(), full=True, color=color) for color in (False, True))
    assert "\x1b[" in coloured
    uncoloured = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in uncoloured.splitlines()] == plain.splitlines()


def test_texts_of_the_configuration_are_printed_as_they_are():
    text = render_text(make_hand_made_report(), full=True)
    assert "[red]no[/red] such module" in text
    assert "wandb_project (line 9): no effect on <memory>" in text


def test_control_characters_do_not_reach_the_terminal():
    assert clean("a\x1b[31mb\nc\u202ed") == "a?[31mb c?d"


class Stream(io.StringIO):
    def __init__(self, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self.terminal, self._encoding = terminal, encoding

    @property
    def encoding(self) -> str:
        return self._encoding

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("_plain_environment")
def test_streams(monkeypatch):
    report = make_hand_made_report()
    assert "\x1b[" in render_for_stream(report, Stream(terminal=True))
    assert render_for_stream(report, Stream(terminal=False)) == render_for_stream(report, None) == render_text(report)
    assert render_for_stream(report, Stream(terminal=False, encoding="ascii")).isascii()
    assert render_for_stream(report, Stream(terminal=False, encoding="latin-1")).isascii()
    monkeypatch.setenv("COLUMNS", "60")
    assert render_for_stream(report, Stream(terminal=False)) == render_text(report, width=60)
    full = render_for_stream(report, Stream(terminal=False), full=True)
    assert full == render_text(report, full=True, width=60)


@pytest.mark.usefixtures("_plain_environment")
@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert "\x1b" not in render_for_stream(make_hand_made_report(), Stream(terminal=True))


@pytest.mark.usefixtures("_plain_environment")
def test_forced_colours_do_not_reach_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in render_for_stream(make_hand_made_report(), None)


def test_printing_a_report_renders_it():
    report = make_hand_made_report()
    assert str(report) == render_text(report)
    # 152576 / 1024 = 149.0; 2 MiB reserved and 400 MiB of context
    assert repr(report) == "<Report of somebody/tiny-<b>: 149.0 KiB allocated, 2.0 MiB reserved, 402.0 MiB on the card>"


def test_the_verdict():
    unnamed = "needs 402.0 MiB; name a card to see whether that fits (--gpu, gpu=)"
    assert describe_fit(make_hand_made_report()) == unnamed
    # 2 MiB reserved + 400 MiB of context: of 424 MiB 22 are left; for 400 MiB it is 2 MiB too much
    assert describe_fit(make_hand_made_report(424 << 20)) == (
        "FITS on test card (424.0 MiB): needs 402.0 MiB, 22.0 MiB left"
    )
    assert describe_fit(make_hand_made_report(400 << 20)) == (
        "DOES NOT FIT on test card (400.0 MiB): needs 402.0 MiB, 2.0 MiB too much"
    )


def test_every_kind_of_note_has_a_title():
    assert {*NOTE_TITLES, "warning", "refused"} == set(NoteKind.__args__)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (23040, "23.0 K"),
        (8_030_261_248, "8.03 B"),
        (405_000_000_000, "405 B"),
        (10**12, "1.00 T"),
    ],
)
def test_format_count(number, text):
    assert format_count(number) == text
