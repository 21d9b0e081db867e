"""Compares batches of different lengths with PyTorch's own allocator, in histories that `scripts/real_lengths.py`
recorded.

`real_lengths.json.gz` has one layer of real models, traced with three or four lengths, and the results of
`c10::cuda::CUDACachingAllocator` of torch 2.14 (its CUDA wheel's libc10_cuda.so) for every sequence of steps, with and
without expandable segments.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.scripts import load_script

from axmem_trace.allocator import parse_alloc_conf, replay
from axmem_trace.lengths.simulate import NUM_SEQUENCES, make_sequences

ROWS: list[dict[str, Any]] = json.loads(gzip.decompress((Path(__file__).parent / "real_lengths.json.gz").read_bytes()))
RECORDINGS = {row["recipe"]: row["recording"] for row in ROWS if "recording" in row}


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("real_lengths")


def test_the_recording_has_both_settings_of_at_least_four_recipes() -> None:
    settings = {row["settings"] for row in ROWS}
    assert settings == {"expandable_segments:True", "expandable_segments:False"}
    assert len(RECORDINGS) >= 4
    assert len(ROWS) == 2 * len(RECORDINGS)
    assert any(row["jumps"] for row in ROWS)
    assert {len(row["lengths"]) for row in ROWS} == {3, 4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['recipe']}-{row['settings'][20:]}")
def test_each_sequence_reserves_the_same_as_pytorch(script: Any, row: dict[str, Any]) -> None:
    """Compares every address and figure of every move (by a digest), and the peak that an estimate reports."""
    recipe, ledger, laws = script.read_recording(RECORDINGS[row["recipe"]])
    settings = replace(parse_alloc_conf(row["settings"]), collect_steps=recipe.allocator.collect_steps)
    sequences = list(make_sequences(replace(recipe, allocator=settings), ledger, laws))
    assert len(sequences) == NUM_SEQUENCES
    assert replay(ledger, settings).peak_reserved_bytes == row["full"]
    assert [replay(each, settings).peak_reserved_bytes for each in sequences] == row["sequences"]
    first = script.simulate(row["settings"], script.CAPACITY_BYTES, script.list_moves(sequences[0]))
    assert script.digest(first) == row["digests"][0]


def test_short_batches_cost_more_without_expandable_segments() -> None:
    """The reason for the figures: freed blocks of short batches are too small for longer batches."""
    for name in RECORDINGS:
        grows, fixed = (row for row in ROWS if row["recipe"] == name)
        assert max(fixed["sequences"]) > max(grows["sequences"])
        assert max(fixed["sequences"]) > fixed["full"]
