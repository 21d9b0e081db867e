"""The estimate against our own runs on real GPUs: every JSON file here that `scripts/measure_on_gpu.py` wrote.

Bars: live bytes within 3 % (1 % in the median of all files), reserved within 10 % (3 % in the median).
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
FILES = sorted(HERE.glob("*.json"))
LIVE = ("after_load", "after_forward", "step_1", "step_2", "end")


@cache
def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def estimate_again(path: Path) -> dict[str, float]:
    """Signed relative errors of today's estimate."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    from gpu_figures import compare, summarise_report

    from axmem_trace import estimate

    run = read(path)
    report = estimate(
        yaml.safe_load(run["content"]), overrides=run["overrides"], assumptions=run["assumptions"],
        gpu=run["gpu"]["asked_for"], hub="never",
    )  # fmt: skip
    return compare(summarise_report(report), run["measured"])


def test_there_are_measured_runs():
    if not FILES:
        pytest.skip("no run of ours was measured yet: no GPU was at hand")
    assert all(read(path)["schema_version"] == 1 for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_live_bytes(path):
    errors = estimate_again(path)
    assert {quantity: errors[quantity] for quantity in LIVE if abs(errors[quantity]) > 0.03} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reserved_bytes(path):
    assert abs(estimate_again(path)["reserved"]) <= 0.10


def test_medians():
    if not FILES:
        pytest.skip("no run of ours was measured yet: no GPU was at hand")
    errors = [estimate_again(path) for path in FILES]
    assert statistics.median(abs(found[quantity]) for found in errors for quantity in LIVE) <= 0.01
    assert statistics.median(abs(found["reserved"]) for found in errors) <= 0.03
