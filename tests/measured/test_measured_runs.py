"""Compares the estimate with our own runs on real GPUs: every JSON file here that `scripts/measure_on_gpu.py` wrote.

Limits: an error of live bytes of at most 3 % (1 % in the median of all files), and of reserved bytes of at most 10 % (3
% in the median).
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path

import pytest
from support.measured_again import LIVE, estimate_again
from support.scripts import load_script

FILES = sorted(Path(__file__).parent.glob("*.json"))


@cache
def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def find_errors(path: Path) -> dict[str, float]:
    """Signed relative errors of the current estimate."""
    run = read(path)
    return load_script("gpu_figures").compare(estimate_again(run), run["measured"])


def test_there_are_measured_runs():
    if not FILES:
        pytest.skip("no run was measured here yet: there was no GPU")
    assert all(read(path)["schema_version"] == 1 for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_live_bytes(path):
    errors = find_errors(path)
    assert {quantity: errors[quantity] for quantity in LIVE if abs(errors[quantity]) > 0.03} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reserved_bytes(path):
    assert abs(find_errors(path)["reserved"]) <= 0.10


def test_medians():
    if not FILES:
        pytest.skip("no run was measured here yet: there was no GPU")
    errors = [find_errors(path) for path in FILES]
    assert statistics.median(abs(found[quantity]) for found in errors for quantity in LIVE) <= 0.01
    assert statistics.median(abs(found["reserved"]) for found in errors) <= 0.03
