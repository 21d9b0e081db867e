"""Whole runs whose rows are divided among ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.config import read_recipe
from axmem_trace.parallel.context import split_by_ring
from axmem_trace.parallel.ranks import all_alike
from axmem_trace.report import Report

FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
RING = {"context_parallel": {"backend": "ring"}}


def run(tmp_path: Path, *, gpus: int, assumptions: tuple[str, ...] = ("fold=false",), **keys: Any) -> Report:
    model = write_tiny_model("llama", tmp_path / "model", num_hidden_layers=9)
    config = make_rank_config(tmp_path, **{"sequence_len": 256, "base_model": model, **keys})
    return estimate(config, num_gpus=gpus, hub="never", assumptions=assumptions)


@pytest.mark.parametrize(
    ("gpus", "keys"),
    [
        (2, {"context_parallel_size": 2}),
        (2, {"context_parallel_size": 2, **FSDP2, **RING}),
        (2, {"context_parallel_size": 2, **FSDP2, **RING, "sample_packing": True}),
        (4, {"context_parallel_size": 2, "dp_shard_size": 2, **FSDP2, "gradient_checkpointing": True}),
    ],
)
def test_folded_runs_are_whole_ones(tmp_path: Path, gpus: int, keys: dict[str, Any]) -> None:
    folded, whole = run(tmp_path, gpus=gpus, assumptions=(), **keys), run(tmp_path, gpus=gpus, **keys)
    assert folded.ranks == whole.ranks
    assert folded.peak == whole.peak


def test_logits_are_of_a_part_of_the_tokens(tmp_path: Path) -> None:
    """The loss's fp32 copy alone is 2 rows x 1024 tokens x 32 words x 4 bytes smaller, and its gradient too."""
    whole, divided = (
        run(tmp_path, gpus=2, sequence_len=2048, **FSDP2, **keys).peak.allocated_bytes
        for keys in ({"dp_shard_size": 2}, {"context_parallel_size": 2})
    )
    assert whole - divided >= 2 * 2 * 1024 * 32 * 4


def test_ranks_of_a_ring_differ(tmp_path: Path) -> None:
    """Two rings of four: rank 0's place, the last, and those between, which are not recorded, as they see fewer keys."""
    config = make_rank_config(
        tmp_path,
        context_parallel_size=4,
        dp_shard_size=2,
        context_parallel={"backend": "ring", "load_balance": "none"},
        **FSDP2,
    )
    groups = split_by_ring(all_alike(8), read_recipe(config, hub="never", num_gpus=8))
    assert [group.ranks for group in groups] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert [group.recorded for group in groups] == [True, False, False, True]


def test_the_last_of_a_gathering_ring_needs_the_most(tmp_path: Path) -> None:
    """Its queries see the keys of all others. DDP, so that all else is equal."""
    ring = {"context_parallel": {"backend": "ring", "load_balance": "none"}}
    report = run(tmp_path, gpus=4, context_parallel_size=4, sequence_len=2048, **ring)
    found = {use.ranks: use for use in report.ranks}
    assert found["3"].worst
    assert found["3"].allocated_bytes > found["0"].allocated_bytes
    assert "rows divided among 4" in str(report)


def test_rows_that_are_divided_on_the_gpu_are_whole_there_first(tmp_path: Path) -> None:
    """2 rows of 256 tokens: ids, labels and mask, 8 bytes each, stay whole while the step runs, beside the halves of ids,
    labels, shifted labels and positions."""
    keys = {"context_parallel_size": 2, **FSDP2}
    on_host = run(tmp_path, gpus=2, **keys)
    on_gpu = run(tmp_path, gpus=2, **keys, context_parallel={"shard_in_collator": False})
    more = on_gpu.peak.allocated_bytes - on_host.peak.allocated_bytes
    assert 0 < more <= 2 * 256 * 8 * 8
