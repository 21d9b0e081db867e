"""The JSON contract: writing a report as JSON, and reading it back."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from support.hand_made_run import make_hand_made_report

import axmem_trace
from axmem_trace.report import Report

CONTRACT = {
    "schema_version": None,
    "model": {"name", "model_type", "parameters", "trainable_parameters"},
    "peak": {"allocated_bytes", "active_bytes", "reserved_bytes", "device_bytes", "phase", "step", "module"},
    "after_load": {"allocated_bytes"},
    "phases": {"load", "step_1", "step_2"},
    "buckets": {"weights", "adapters", "gradients", "optimizer", "activations", "workspace"},
    "resident": {"weights", "adapters", "gradients", "optimizer"},
    "versions": {"axmem_trace", "torch"},
    "elapsed_seconds": {"import", "build", "trace", "replay"},
}
ROWS = {
    "modules": set(
        """
    name class parameters trainable_parameters weight_bytes gradient_bytes optimizer_bytes activation_bytes
    """.split()
    ),
    "dtypes": {"kind", "dtype", "trainable", "tensors", "elements", "bytes"},
    "notes": {"kind", "key", "text", "bytes"},
}


@pytest.mark.parametrize("memory_bytes", [0, 24 << 30])
def test_a_report_can_be_read_from_its_own_json(memory_bytes):
    report = make_hand_made_report(memory_bytes)
    assert Report.from_json(report.to_json()) == report


def test_a_failed_request_can_be_read_from_json():
    report = make_hand_made_report(1 << 20, out_of_memory=SimpleNamespace(tick=3, index=3, requested_bytes=7))
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.out_of_memory.requested_bytes == 7


def test_every_documented_field_exists():
    contents = json.loads(make_hand_made_report().to_json())
    assert contents["schema_version"] == 1
    for section, names in CONTRACT.items():
        if names:
            assert names <= set(contents[section]), section
    for section, names in ROWS.items():
        for row in contents[section]:
            assert names <= set(row), section
    for use in contents["phases"].values():
        assert {"allocated_bytes", "reserved_bytes"} <= set(use)


def test_sizes_are_integers():
    contents = json.loads(make_hand_made_report(24 << 30).to_json())
    sizes = [*contents["buckets"].values(), *contents["resident"].values(), contents["peak"]["device_bytes"]]
    assert all(type(size) is int for size in sizes)


def test_json_is_ascii_and_stable():
    text = make_hand_made_report().to_json()
    assert text.isascii()
    assert text == make_hand_made_report().to_json()


def test_unknown_fields_are_ignored_and_missing_ones_are_named():
    contents = json.loads(make_hand_made_report().to_json())
    contents["invented_later"] = {"a": 1}
    contents["peak"]["invented_later"] = 1
    assert Report.from_json(json.dumps(contents)) == make_hand_made_report()
    del contents["peak"]["allocated_bytes"]
    with pytest.raises(ValueError, match=r"^report\.peak: allocated_bytes is missing$"):
        Report.from_json(json.dumps(contents))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", 2, r"schema_version 2 is not one this version reads \(1 to 1\)"),
        ("fits", "yes", r"report\.fits: expected bool, found str"),
        ("gpu", [], r"report\.gpu: expected dict, found list"),
        ("notes", [{"kind": "gossip", "key": "", "text": ""}], r"report\.notes\[0\]\.kind: 'gossip' is not one of"),
    ],
)
def test_an_invalid_report_is_refused_with_the_path_of_the_error(path, value, message):
    contents = json.loads(make_hand_made_report().to_json()) | {path: value}
    with pytest.raises(ValueError, match=message):
        Report.from_json(json.dumps(contents))


def test_true_is_not_a_number():
    contents = json.loads(make_hand_made_report().to_json())
    contents["buckets"]["weights"] = True
    with pytest.raises(ValueError, match=r"report\.buckets\.weights: expected int, found bool"):
        Report.from_json(json.dumps(contents))


def test_reports_are_frozen():
    report = make_hand_made_report()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.fits = True


def test_the_package_exports_the_report():
    assert axmem_trace.Report is Report
