"""Tables for pandas."""

from __future__ import annotations

import sys

import pytest
from support.hand_made_run import make_hand_made_report


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # `import pandas` now raises ImportError
    with pytest.raises(ImportError, match=r"to_pandas\(\) needs pandas: pip install pandas"):
        make_hand_made_report().to_pandas()


def test_an_unknown_table_is_refused():
    with pytest.raises(
        ValueError, match="'buckets' is no table of a report; there are modules, timeline, dtypes, phases"
    ):
        make_hand_made_report().to_pandas("buckets")


def test_tables():
    pytest.importorskip("pandas")
    report = make_hand_made_report()
    modules = report.to_pandas()
    assert modules.loc["model.layers.0.proj", "class"] == "Linear4bit"
    assert modules["weight_bytes"].sum() == report.resident.weights + report.resident.adapters
    assert report.to_pandas("timeline")["allocated_bytes"].max() == report.peak.allocated_bytes
    assert report.to_pandas("dtypes")["bytes"].sum() == report.resident.weights + report.resident.adapters
    phases = report.to_pandas("phases")
    assert list(phases.index[:3]) == ["load", "step_1", "step_1.forward"]
    columns = ["weights", "adapters", "gradients", "optimizer", "activations", "workspace"]
    assert (phases[columns].sum(axis=1) == phases["allocated_bytes"]).all()
