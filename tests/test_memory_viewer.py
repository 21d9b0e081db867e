"""Snapshots in PyTorch's own memory viewer: its script (MemoryViz.js) reads them, without a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS
from support.snapshot_ledger import LEDGER, MIB, SETTINGS

from axmem_trace.allocator import parse_alloc_conf
from axmem_trace.ledger import BUCKETS, Ledger
from axmem_trace.snapshot import make_snapshot, write_snapshot

VIEWER = Path(os.environ.get("MEMORY_VIEWER") or ROOT / ".ci" / "MemoryViz.js")
PROGRAM = TESTS / "support" / "memory_viewer.mjs"
needs_viewer = pytest.mark.skipif(
    not (shutil.which("node") and VIEWER.is_file()),
    reason="needs Node.js, and MemoryViz.js from scripts/fetch_memory_viewer.py",
)


def view(path: Path) -> dict:
    """The viewer's drawing of a file. If its script raises an exception, the test fails with the message."""
    done = subprocess.run(["node", PROGRAM, VIEWER, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_viewer
@pytest.mark.parametrize("text", SETTINGS)
def test_every_view_of_the_viewer_is_drawn(text, tmp_path):
    write_snapshot(tmp_path / "snapshot.pickle", LEDGER, parse_alloc_conf(text))
    seen = view(tmp_path / "snapshot.pickle")
    assert set(seen["categories"]) == {"unknown", "weights", "activations", "workspace", "gradients"}
    (device,) = seen["devices"]
    # 30 MiB of weights, 12 of activations and 30 of gradients are alive together. Allocations of 0 bytes and of the CPU
    # are not shown.
    assert device["peak_bytes"] == 72 * MIB
    assert device["elements"] == 4
    # each allocation has the colour of its bucket, in the legend's order; the last colour is the viewer's own
    # "summarized"
    buckets = [seen["categories"][color] for color in device["colors"][:-1]]
    assert buckets == ["weights", "activations", "workspace", "gradients"]
    for line in ("op:0:aten.empty", "module:0:model.embed", "phase:0:load, step 0"):
        assert line in device["first_text"].splitlines()


@needs_viewer
def test_a_history_that_ends_out_of_memory_is_drawn(tmp_path):
    for capacity_bytes in (MIB, 50 * MIB):  # out of memory at the first allocation, and at the last
        path = tmp_path / f"{capacity_bytes}.pickle"
        write_snapshot(path, LEDGER, parse_alloc_conf(""), capacity_bytes=capacity_bytes)
        assert view(path)["devices"][0]["elements"] == (0 if capacity_bytes == MIB else 3)


@needs_viewer
def test_an_empty_history_is_drawn(tmp_path):
    write_snapshot(tmp_path / "empty.pickle", Ledger(allocations=(), marks=(), ticks=0), parse_alloc_conf(""))
    assert view(tmp_path / "empty.pickle") == {
        "categories": [],
        "devices": [{"peak_bytes": 0, "elements": 0, "colors": [0], "first_text": ""}],
    }


@pytest.mark.parametrize("text", SETTINGS)
@pytest.mark.parametrize("capacity_bytes", [0, MIB, 50 * MIB])
def test_unknown_is_a_category_if_there_are_categories(text, capacity_bytes):
    """The viewer's script needs it (`NO_CATEGORY`). This test runs without the script."""
    snapshot = make_snapshot(LEDGER, parse_alloc_conf(text), capacity_bytes=capacity_bytes)
    categories = {entry["category"] for entry in snapshot["device_traces"][0] if "category" in entry}
    assert not categories or "unknown" in categories


def test_no_two_buckets_share_a_colour():
    assert len({*BUCKETS, "unknown"}) <= 10  # the viewer has ten colours and then repeats them (`schemeTableau10`)
