"""Predicted and measured figures: the table, and the file."""

from __future__ import annotations

import json

from support.hand_made_run import make_hand_made_report

from axmem_trace.integrations.record import (
    append_run,
    collect_ranks,
    compare_lines,
    forget_ranks,
    leave_for_rank_0,
)

REPORT = make_hand_made_report()


def rank(number: int, share: float = 1.0, limits: tuple[str, ...] = (), failed: str = "") -> dict:
    """Figures of one rank: this share of the predicted figures."""
    phases = {
        name: {
            "active_bytes": int(share * use.active_bytes),
            "allocated_bytes": int(share * use.counted_bytes),
            "reserved_bytes": int(share * use.reserved_bytes),
            "upper_limits": list(limits),
        }
        for name, use in REPORT.phases.items()
    }
    return {"rank": number, "device": "A", "phases": phases} | ({"failed": failed} if failed else {})


def test_the_error_is_that_of_the_prediction():
    """The run used 80 % of the predicted memory: the prediction is 25 % too high."""
    line = next(line for line in compare_lines(REPORT, [rank(0, 0.8)]) if "first step" in line)
    assert line.count("+25.0 %") == 2


def test_an_upper_limit_has_no_error():
    line = next(line for line in compare_lines(REPORT, [rank(0, limits=("allocated_bytes",))]) if "first step" in line)
    assert line.count("<= ") == 1
    assert line.count("%") == 1


def test_the_rank_with_the_most_is_shown_and_a_difference_named():
    lines = [*compare_lines(REPORT, [rank(0, 0.5), rank(1, 1.0), rank(2, 0.9)])]
    assert "+0.0 %" in next(line for line in lines if "first step" in line)
    assert lines[-1].startswith("  ranks differ: reserved")
    assert "on rank 0" in lines[-1]
    assert "on rank 1" in lines[-1]


def test_a_failed_rank_is_named():
    assert "  rank 3 failed: OutOfMemoryError: x" in [*compare_lines(REPORT, [rank(3, failed="OutOfMemoryError: x")])]


def test_no_card_and_no_prediction():
    lines = [*compare_lines(None, [{"rank": 0, "device": "", "phases": {}}])]
    assert "nothing was measured" in lines[-1]
    assert len(lines) == 3


def test_runs_are_appended(tmp_path):
    path = tmp_path / "out" / "axmem_trace.json"
    for number in range(3):
        assert append_run(path, {"number": number}) == path
    assert [run["number"] for run in json.loads(path.read_text())["runs"]] == [0, 1, 2]
    assert [each.name for each in path.parent.iterdir()] == ["axmem_trace.json"]


def test_a_file_with_other_content_is_not_changed(tmp_path):
    for content in ("not json", "[]", '{"runs": 3}', '{"schema_version": 9, "runs": []}'):
        path = tmp_path / "axmem_trace.json"
        path.write_text(content)
        (tmp_path / "axmem_trace.new.json").unlink(missing_ok=True)
        assert append_run(path, {}).name == "axmem_trace.new.json"
        assert path.read_text() == content


def test_rank_0_collects_the_others(tmp_path):
    forget_ranks(tmp_path / "none")
    for number in (2, 1):
        leave_for_rank_0(tmp_path / "out", number, rank(number))
    assert collect_ranks(tmp_path / "out", range(1, 3), seconds=0) == [rank(1), rank(2)]
    assert [*(tmp_path / "out").iterdir()] == []
    assert collect_ranks(tmp_path / "out", range(1, 3), seconds=0) == []


def test_figures_of_an_earlier_run_are_removed(tmp_path):
    leave_for_rank_0(tmp_path, 1, rank(1))
    forget_ranks(tmp_path)
    assert collect_ranks(tmp_path, [1], seconds=0) == []
