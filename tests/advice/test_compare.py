"""Comparisons of runs show only the differences."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from support.hand_made_run import make_hand_made_report
from support.snapshot_ledger import LEDGER, MIB, SETTINGS

from axmem_trace.__main__ import main
from axmem_trace.advice.compare import Column, compare, make_column
from axmem_trace.advice.measured import read_log, read_snapshot
from axmem_trace.allocator import parse_alloc_conf, replay
from axmem_trace.errors import ConfigError
from axmem_trace.render.comparison import render_comparison
from axmem_trace.report.run_types import Choice
from axmem_trace.snapshot import write_snapshot
from axmem_trace.units import GIB


def column(label, figures, **rest):
    return Column(label=label, sections={"figures": figures, "holders": {"logits": figures["max_allocated"]}}, **rest)


A, B = column("a.yml", {"max_allocated": 4 * GIB}), column("b.yml", {"max_allocated": 3 * GIB})


def test_figures_are_compared_with_the_first_run():
    text = render_comparison(compare([A, B, A]), "text")
    # 3 instead of 4: a quarter less
    assert "max_allocated  4.00 GiB  3.00 GiB  -1.00 GiB -25.0%  4.00 GiB  ~" in text
    assert text.startswith("A  a.yml\nB  b.yml\nC  a.yml\n")


def test_the_largest_differences_come_first_and_equal_rows_are_left_out():
    first = Column(label="a", sections={"modules": {"same": 9, "less": 10, "gone": 5}})
    other = Column(label="b", sections={"modules": {"same": 9, "less": 7, "new": 20}})
    rows = compare([first, other]).sections["modules"]
    assert [(row.name, row.values) for row in rows] == [("new", (0, 20)), ("gone", (5, 0)), ("less", (10, 7))]


def test_figures_that_were_not_measured_are_not_compared():
    measured = Column(label="log", sections={"figures": {"max_allocated": 5 * GIB}}, measured=True)
    found = compare([A, measured])
    assert list(found.sections) == ["figures"]
    assert "4.00 GiB  5.00 GiB  +1.00 GiB +25.0%" in render_comparison(found, "text")
    assert "log (measured)" in render_comparison(found, "text")


def test_settings_that_differ_come_first_and_hidden_facts_last():
    report = make_hand_made_report()
    other = replace(
        report,
        run={**report.run, "batch": "4 x 100 tokens"},
        versions={**report.versions, "torch": "9.9"},
        choices={**report.choices, "kernels.lora": Choice(value="none", text="", origin="config")},
    )
    found = compare([make_column("a.yml", report), make_column("b.yml", other)])
    assert found.changed["batch"] == (report.run["batch"], "4 x 100 tokens")
    assert found.changed["kernels.lora"][1] == "none"
    assert any(fact.startswith("torch differs: ") and fact.endswith("9.9") for fact in found.hidden)
    text = render_comparison(found, "text")
    assert text.index("changed settings") < text.index("figures") < text.index("beside the settings")


def test_nothing_differs():
    same = make_column("a.yml", make_hand_made_report())
    assert "nothing differs" in render_comparison(compare([same, same]), "text")


def test_markdown_is_a_table():
    lines = render_comparison(compare([A, B]), "markdown").splitlines()
    head = lines.index("| figures | A | B |")
    assert lines[head + 1] == "| --- | ---: | ---: |"
    assert lines[head + 2].startswith("| max_allocated | 4.00 GiB | 3.00 GiB")


def test_json():
    found = json.loads(render_comparison(compare([A, B]), "json"))
    assert found["sections"]["figures"]["max_allocated"] == [4 * GIB, 3 * GIB]
    assert [each["label"] for each in found["columns"]] == ["a.yml", "b.yml"]


def test_one_run_cannot_be_compared():
    with pytest.raises(ValueError, match="two runs"):
        compare([A])


@pytest.mark.parametrize("text", SETTINGS)
def test_a_snapshot_has_the_peaks_of_its_ledger(tmp_path, text):
    allocator = parse_alloc_conf(text)
    write_snapshot(tmp_path / "s.pickle", LEDGER, allocator)
    # 30 MiB of weights, 12 of activations, 30 of gradients
    assert read_snapshot(tmp_path / "s.pickle").sections["figures"] == {
        "max_allocated": 72 * MIB,
        "device_reserved": replay(LEDGER, allocator).peak_reserved_bytes,
    }


def test_memory_allocated_before_the_recording_counts(tmp_path):
    """A recording that begins late: 10 MiB are allocated already, and 5 more are allocated and freed."""
    block = {"state": "active_allocated", "size": 10 * MIB, "requested_size": 10 * MIB - 100}
    trace = [
        {"action": "alloc", "size": 5 * MIB},
        {"action": "free_requested", "size": 5 * MIB},
        {"action": "free_completed", "size": 5 * MIB},
        {"action": "segment_free", "size": 8 * MIB},
    ]
    snapshot = {"segments": [{"device": 0, "total_size": 20 * MIB, "blocks": [block]}], "device_traces": [trace]}
    (tmp_path / "s.pickle").write_bytes(pickle.dumps(snapshot))
    figures = read_snapshot(tmp_path / "s.pickle").sections["figures"]
    assert figures == {"max_allocated": 15 * MIB, "device_reserved": 28 * MIB}


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"device_traces": 3}), pickle.dumps(ConfigError("x"))],
)
def test_a_pickle_that_is_not_a_snapshot_is_refused_and_not_executed(tmp_path, content):
    (tmp_path / "s.pickle").write_bytes(content)
    with pytest.raises(ConfigError, match="no snapshot"):
        read_snapshot(tmp_path / "s.pickle")


def test_the_largest_figures_of_a_log(tmp_path):
    line = "{{'loss': 1.5, 'memory/max_allocated (GiB)': {}, 'memory/device_reserved (GiB)': {}}}\n"
    (tmp_path / "run.log").write_text(line.format(2.5, 3.0) + "[INFO] noise\n" + line.format(2.25, 3.5))
    figures = read_log(tmp_path / "run.log").sections["figures"]
    assert figures == {"max_allocated": round(2.5 * GIB), "device_reserved": round(3.5 * GIB)}
    (tmp_path / "empty.log").write_text("nothing of the kind\n")
    with pytest.raises(ConfigError, match="max_allocated"):
        read_log(tmp_path / "empty.log")


def test_saved_reports_on_the_command_line(tmp_path, capsys):
    for name, memory in (("a", 0), ("b", 1 << 40)):
        (tmp_path / f"{name}.json").write_text(make_hand_made_report(memory).to_json())
    (tmp_path / "no.json").write_text("{}")
    paths = [str(tmp_path / f"{name}.json") for name in ("a", "b", "no")]
    assert main(["compare", *paths[:2]]) == 0
    assert "verdict" in capsys.readouterr().out
    assert main(["compare", paths[0]]) == 2
    assert "at least two runs" in capsys.readouterr().err
    assert main(["compare", paths[0], paths[2]]) == 2
    assert "no report saved with --format json" in capsys.readouterr().err


def test_variants_of_one_configuration(tmp_path, capsys, monkeypatch):
    asked = []

    def estimate(config, **options):
        asked.append((config, options["overrides"]))
        return make_hand_made_report()

    module = ModuleType("axmem_trace.estimation")
    module.estimate = estimate
    monkeypatch.setitem(sys.modules, "axmem_trace.estimation", module)
    assert main(["compare", "run.yml", "--set", "x=1", "--try", "a=1 b='[2, 3]'", "--try", "c=4"]) == 0
    assert asked == [("run.yml", ("x=1",)), ("run.yml", ("x=1", "a=1", "b=[2, 3]")), ("run.yml", ("x=1", "c=4"))]
    assert "B  a=1 b='[2, 3]'" in capsys.readouterr().out
