"""The benchmark: the cost of a process, a table by hand, and MemTracker's step compared with ours on a small model."""

from __future__ import annotations

import sys

import pytest
from support.paths import ROOT
from support.scripts import load_script

SCRIPT = load_script("benchmark")
MIB, GIB = 1 << 20, 1 << 30

BURN = """
import time
block = bytearray(96 << 20)
block[::4096] = b"x" * len(block[::4096])
while time.process_time() < 0.4: pass
print("done")
"""


def test_the_cost_of_a_process_is_measured():
    idle, busy = SCRIPT.run_process([sys.executable, "-c", "pass"]), SCRIPT.run_process([sys.executable, "-c", BURN])
    assert busy.output == "done\n"
    assert 0.4 <= busy.cost.cpu_seconds < 1.0
    assert 96 * MIB <= busy.cost.peak_rss_bytes < max(idle.cost.peak_rss_bytes, 32 * MIB) + 100 * MIB
    assert idle.cost.cpu_seconds < 0.3


def test_the_smallest_of_the_repetitions_counts():
    costs = [SCRIPT.Cost(2.0, 10), SCRIPT.Cost(1.5, 30), SCRIPT.Cost(3.0, 20)]
    assert SCRIPT.least(costs) == SCRIPT.Cost(1.5, 10)


def test_a_process_that_fails_is_an_error_with_its_output():
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3 .*why it stopped"):
        SCRIPT.run_checked([sys.executable, "-c", "print('why it stopped'); raise SystemExit(3)"])


def test_mem_tracker_is_stopped_after_the_limit(monkeypatch):
    monkeypatch.setattr(SCRIPT, "TRACKER_LIMIT", 1)
    row = SCRIPT.Row(SCRIPT.CASES[-2], SCRIPT.Cost(1.0, 1), SCRIPT.Cost(1.0, 1), 1.0, 1.0, 1)  # importing takes longer
    assert SCRIPT._with_tracker(row).stopped == "not done after 1 CPU seconds"


def test_the_table_by_hand():
    plain, tracked = SCRIPT.Case("A", 32, "a.yml"), SCRIPT.Case("B", 8, "b.yml", tracked=True)
    floor, other = SCRIPT.Cost(5.0, 400 * MIB), SCRIPT.Cost(4.0, 410 * MIB)
    rows = [
        SCRIPT.Row(plain, floor, SCRIPT.Cost(4.5, 500 * MIB), 0.75, 0.25, 3 * GIB),
        SCRIPT.Row(
            tracked, other, SCRIPT.Cost(10.0, 512 * MIB), 2.0, 1.0, 20 * GIB, SCRIPT.Cost(60.0, 700 * MIB), 19 * GIB
        ),
        SCRIPT.Row(tracked, other, SCRIPT.Cost(10.0, 512 * MIB), 2.0, 1.0, 20 * GIB, stopped="KeyError: 'x'"),
    ]
    lines = SCRIPT.write_table(rows, 3).splitlines()
    assert lines[0].endswith("in turn with each run: 4.00 CPU")
    assert lines[1].startswith("seconds or more, 400 MiB. Least of 3;")
    assert lines[6] == "| A | 32 | 5.00 | 4.50 | 0.90 | 0.75 | 0.25 | 500 MiB | 3.00 GiB |  |  |  |"
    assert (
        lines[7] == "| B | 8 | 4.00 | 10.00 | 2.50 | 2.00 | 1.00 | 512 MiB | 20.00 GiB | 19.00 GiB | 60.0 | 700 MiB |"
    )
    assert lines[8].endswith("| 20.00 GiB | stops |  |  |")
    assert lines[10] == "- MemTracker on B: KeyError: 'x'"
    assert {line.count("|") for line in lines[4:9]} == {13}

    short = SCRIPT.write_short_table("\n".join(lines)).splitlines()
    assert short[2] == "| A | 32 | 5.00 | 4.50 | 0.90 | 0.75 | 0.25 | 500 MiB |"
    assert {line.count("|") for line in short} == {9}


def test_the_document_has_a_table_with_each_case():
    table = SCRIPT.marked_blocks.read(SCRIPT.DOCUMENT.read_text(encoding="utf-8"), SCRIPT.BLOCK)
    for case in SCRIPT.CASES:
        assert f"| {case.name} | {case.layers} |" in table
        assert (ROOT / case.config).exists()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The benchmark's own full fine-tune, with two layers of 64 channels."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "vocab_size": 4096,
    }
    settings = [f"overrides_of_model_config.{key}={value}" for key, value in sizes.items()]
    return ROOT / "configs/llama-3.1/8b/full.yml", [*SCRIPT.PLAIN_STEP, *settings]


def test_mem_tracker_runs_the_estimated_step(small_run):
    import axmem_trace
    from axmem_trace.config import read_recipe

    config, settings = small_run
    report = axmem_trace.estimate(config, overrides=settings, hub="never")
    tracked = load_script("mem_tracker").track(read_recipe(config, overrides=settings, hub="never"))
    assert tracked == pytest.approx(report.peak.allocated_bytes, rel=0.002)


def test_mem_tracker_refuses_runs_that_it_cannot_build():
    from axmem_trace.config import read_recipe

    with pytest.raises(ValueError, match="only a full fine-tune"):
        load_script("mem_tracker").track(read_recipe(ROOT / "configs/llama-3.1/8b/qlora.yml", hub="never"))
