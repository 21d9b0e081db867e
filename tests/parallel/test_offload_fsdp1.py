"""FSDP1 with `offload_params`: what two real gloo ranks allocate, and what is on the host, by arithmetic by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config
from support.real_ranks import Case, record_for_real, record_on_meta, tiny_run

from axmem_trace import estimate
from axmem_trace.ledger import Ledger
from axmem_trace.report import Report

OFFLOADED = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "offload_params": True}}
# A layer has 4 * 32 * 32 - 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32 = 7,744 parameters; the root 2 * 97 * 32 + 32 = 6,240.
LAYER, ROOT = 4 * 7_744 // 2, 4 * 6_240 // 2
"""Bytes of fp32 shards on two ranks."""
LATER_PASSES = (("backward", 1), ("forward", 2), ("backward", 2))


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Ledger]:
    """Of rank 0: on meta, and for real."""
    case = Case({**tiny_run(tmp_path_factory.mktemp("models")), **OFFLOADED}, {}, "base", "0.19.0")
    return record_on_meta(case, 2), record_for_real([case], 2)[0][0]


def test_the_gpu_has_what_real_ranks_have_and_the_copies(ledgers: tuple[Ledger, Ledger]) -> None:
    """On a CPU nothing is copied between host and GPU, and pinned shards and gradients are ordinary tensors. The pinned
    shards are as large as the copies of the first forward pass."""
    on_meta, real = (_count(ledger) for ledger in ledgers)
    per_pass = {(LAYER, "aten.clone.default"): 2, (ROOT, "aten.clone.default"): 1}
    copied = {(phase, step, *row): count for row, count in per_pass.items() for phase, step in LATER_PASSES}
    shards = {("load", 0, LAYER // 2, "aten.clone.default"): 2, ("load", 0, ROOT // 2, "aten.clone.default"): 1}
    assert on_meta - real == {**copied, **shards}
    pinned = {}
    for size, count in ((LAYER, 2), (ROOT, 1)):
        pinned["forward", 1, size, "aten.zeros_like.default"] = count
        pinned["forward", 1, size, "aten.clone.default"] = count
    assert real - on_meta == pinned


def _count(ledger: Ledger) -> Counter[tuple[str, int, int, str]]:
    return Counter(
        (each.phase, each.step, each.nbytes, each.op)
        for each in ledger.on_gpu
        if each.phase != "optimizer" and each.nbytes > 8
    )


def test_shards_and_gradients_are_pinned(ledgers: tuple[Ledger, Ledger]) -> None:
    """In powers of two: 15,488 and 12,480 bytes are 16,384."""
    host = [each for each in ledgers[0].allocations if each.device == "cpu" and each.phase == "forward"]
    for role in ("weight", "gradient"):
        assert [each.nbytes for each in host if each.role == role] == [16_384] * 3


def report_of(directory: Path, **keys: Any) -> Report:
    config = make_rank_config(directory, **{**OFFLOADED, **keys})
    return estimate(config, num_gpus=4, axolotl="0.19.0", hub="never")


def test_host_memory_of_a_rank(tmp_path: Path) -> None:
    """An even vocabulary of 96: the root has 6,176 parameters, all together 21,664.

    On 4 ranks fp32 shards are 7,744 and 6,176 bytes, in pinned blocks 8,192 each: three of weights, three of gradients.
    Two fp32 states of 5,416 parameters are 43,328 bytes. Counters and norms have 4 bytes each.
    """
    report = report_of(tmp_path)
    (row,) = report.ranks
    assert row.ranks == "0-3"
    rest = row.host_bytes - 6 * 8_192 - 43_328
    assert 0 < rest < 200
    assert rest % 4 == 0
    assert (report.resident.gradients, report.resident.optimizer) == (0, 0)
    assert report.resident.weights == 2 * 4 * 4  # the rotary table and its original stay on the GPU


def test_accumulated_gradients_stay_on_the_gpu(tmp_path: Path) -> None:
    """`no_sync` keeps whole gradients there, in bf16: 2 * 21,664 bytes at least."""
    one, three = (report_of(tmp_path, gradient_accumulation_steps=steps).resident.gradients for steps in (1, 3))
    assert one == 0
    assert three >= 2 * 21_664
