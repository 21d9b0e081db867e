"""The plugin in real runs of axolotl 0.21 on the CPU, on a simulated card (`support.axolotl_run`)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.paths import ROOT, TESTS

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("axolotl"), reason="axolotl is not installed here"),
    pytest.mark.slow,
]
MIB = 1 << 20


class Run(NamedTuple):
    code: int
    said: str
    runs: list[dict[str, Any]]

    def measured(self, phase: str) -> tuple[int, bool]:
        """The peak of allocated MiB in a phase, and whether it is only an upper limit."""
        found = self.runs[-1]["measured"][0]["phases"][phase]
        return found["allocated_bytes"] // MIB, "allocated_bytes" in found["upper_limits"]


def run(folder: Path, card: dict[str, Any], **changes: Any) -> Run:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{TESTS}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "support.axolotl_run", str(folder), json.dumps(changes), json.dumps(card)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    path = folder / "out" / "axmem_trace.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    return Run(done.returncode, done.stdout + done.stderr, runs)


def test_peaks_are_read_before_axolotl_resets_them(tmp_path):
    """axolotl logs each step and resets the peaks, so each phase has its own peak: 100, then the larger of 80 and 90,
    then 60."""
    found = run(
        tmp_path,
        {"memory_mib": 24 * 1024, "steps": [100, 80, 90], "evaluation": 60},
        command_line={"micro_batch_size": "3"},
        eval_steps=3,
    )
    assert found.code == 0, found.said
    assert [found.measured(phase) for phase in ("step_1", "step_2", "eval")] == [(100, False), (90, False), (60, False)]
    assert "'memory/max_allocated (GiB)': '0.1'" in found.said, "axolotl's own log has the peak of step 1: 100 MiB"
    predicted = found.runs[0]["predicted"]
    assert predicted["run"]["batch"] == "3 x 64 tokens", "the command line's batch, not the file's"
    assert predicted["verdict"] == "fits with room"
    assert predicted["gpu"]["memory_bytes"] == 24 << 30
    assert "FITS WITH ROOM on 24576MiB" in found.said
    assert found.said.index("FITS WITH ROOM") < found.said.index("Loading weights")
    assert not [note for note in predicted["notes"] if note["key"] in ("plugins", "memory_check")]


def test_without_resets_later_phases_have_upper_limits(tmp_path):
    """Nothing is logged before the end. Step 2 did not exceed the 100 of step 1, step 3 reached 120. The peak of
    evaluation (50, at the end) can't be seen, because it is lower."""
    found = run(tmp_path, {"steps": [100, 80, 120], "evaluation": 50}, logging_steps=50, eval_steps=3)
    assert found.code == 0, found.said
    assert found.measured("step_1") == (100, False)
    assert found.measured("step_2") == (120, False)
    found = run(tmp_path, {"steps": [100, 80, 70], "evaluation": 50}, logging_steps=50, eval_steps=3)
    assert found.measured("step_2") == (100, True)
    assert len(found.runs) == 2, "a second run is appended"


def test_stop_ends_the_run_before_the_model_is_loaded(tmp_path):
    """Rows of 8,192 tokens with eager attention need several GiB; the card has half a GiB."""
    found = run(tmp_path, {"memory_mib": 512, "steps": [], "evaluation": 0}, memory_check="stop", sequence_len=8192)
    assert found.code == 3
    assert "DOES NOT FIT" in found.said
    assert "Loading weights" not in found.said
    assert found.runs[0]["predicted"]["verdict"] == "does not fit"


def test_a_failed_run_writes_its_figures(tmp_path):
    found = run(
        tmp_path,
        {"memory_mib": 512, "steps": [100, 80], "evaluation": 60, "fails_at": 2},
        memory_check="warn",
        sequence_len=8192,
    )
    assert found.code == 1
    assert found.measured("step_1") == (100, False)
    assert found.runs[0]["measured"][0]["failed"] == "MemoryError: simulated: CUDA out of memory"


def test_an_error_of_the_plugin_does_not_end_the_run(tmp_path):
    found = run(tmp_path, {"steps": [100, 80, 90], "evaluation": 60, "no_process": True}, memory_check="stop")
    assert found.code == 0, found.said
    assert "axmem_trace: load_datasets failed, and the run goes on without it: OSError: no process" in found.said
    assert found.runs[0]["predicted"] is None
    assert found.measured("step_1") == (100, False)
