"""When the run frees cached memory: `torch_empty_cache_steps`, `gc_collect_steps` and the older key `gc_steps`."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import pytest
from support.whole_runs import make_config, make_recipe, record

import axmem_trace


def when_emptied(tmp_path: Path, **keys: Any) -> list[str]:
    """For each call of `empty_cache`, the phase and step that begins or continues at that moment."""
    ledger, _ = record(make_recipe(tmp_path, sequence_len=16, **keys))
    marks = sorted(ledger.marks, key=lambda mark: mark.tick)
    starts = [mark.tick for mark in marks]
    found = []
    for tick in ledger.empty_cache_ticks:
        mark = marks[max(bisect_right(starts, tick) - 1, 0)]
        found.append(f"{mark.phase} {mark.step}")
    return found


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, []),
        # HF Trainer, `training_step`: between forward and backward of steps 0 and 1
        ({"torch_empty_cache_steps": 1}, ["forward 1", "forward 2"]),
        ({"torch_empty_cache_steps": 2}, ["forward 1"]),
        # axolotl's callback: when training begins, and when a step has ended
        ({"gc_collect_steps": 1}, ["load 0", "optimizer 1", "optimizer 2"]),
        ({"gc_collect_steps": 2}, ["load 0", "optimizer 2"]),
        ({"gc_collect_steps": -1}, ["load 0"]),
        # both
        ({"gc_steps": 1}, ["load 0", "forward 1", "optimizer 1", "forward 2", "optimizer 2"]),
    ],
)
def test_when_the_cache_is_emptied(keys: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    assert when_emptied(tmp_path, **keys) == expected


def test_memory_that_loading_cached_is_freed(tmp_path: Path) -> None:
    """Loading the tiny model never leaves an entirely free page. But emptying the cache must not make its first step
    reserve more."""
    plain, collected = (
        axmem_trace.estimate(
            make_config(tmp_path, sequence_len=16, **keys), hub="never", assumptions=["allocator=default"]
        )
        for keys in ({}, {"gc_collect_steps": 1})
    )
    assert collected.peak.allocated_bytes == plain.peak.allocated_bytes
    assert collected.phases["step_2"].reserved_bytes <= plain.phases["step_2"].reserved_bytes
