"""Compares ZeRO on meta with DeepSpeed itself in two real processes on the CPU, allocation by allocation.

DeepSpeed's accelerator for CPUs has no streams. The operators, their order and their tensors are the same.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.real_ranks import tiny_run
from support.real_zero import HAS_DEEPSPEED, ZeroCase, record_with_deepspeed, record_zero_on_meta

from axmem_trace.ledger import Allocation, Ledger, Phase

pytestmark = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="deepspeed is not installed: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed"
)

LORA = {"adapter": "lora", "lora_r": 3, "lora_alpha": 8, "lora_target_linear": True}
THREE = {"gradient_accumulation_steps": 3}
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


def zero(stage: int, *, top: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """The value of a `deepspeed` key. Some of the tiny model's parameters fit into the bucket, but not its
    embedding."""
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 3000, **settings},
            "bf16": {"enabled": True},
            "gradient_clipping": 1.0,
            **(top or {}),
        }
    }


STOCK_3: dict[str, Any] = {
    "overlap_comm": True,
    "sub_group_size": 0,
    "max_live_parameters": 0,
    "max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 900,
    "stage3_param_persistence_threshold": 320,
    "reduce_bucket_size": 1024,
}
"""axolotl's zero3.json, for a hidden size of 32."""


CASES: dict[str, dict[str, Any]] = {
    "zero1": zero(1),
    "zero1, overlapping": zero(1, overlap_comm=True),
    "zero1, accumulating": {**zero(1), **THREE},
    "zero1, overlapping, accumulating": {**zero(1, overlap_comm=True), **THREE},
    "zero1, lora": {**zero(1), **LORA},
    "zero2": zero(2),
    "zero2, overlapping": zero(2, overlap_comm=True),
    "zero2, one bucket": zero(2, overlap_comm=True, reduce_bucket_size=500_000),
    "zero2, accumulating": {**zero(2), **THREE},
    "zero2, not contiguous": zero(2, contiguous_gradients=False),
    "zero2, all-reduce": zero(2, reduce_scatter=False),
    "zero2, owner by owner": zero(2, use_multi_rank_bucket_allreduce=False),
    "zero2, round robin": zero(2, round_robin_gradients=True),
    "zero2, in fp32": zero(2, top={"communication_data_type": "fp32"}),
    "zero2, no check": zero(2, top={"bf16": {"enabled": True, "check_grad_overflow": False}}),
    "zero2, no clipping": zero(2, top={"gradient_clipping": 0.0}),
    "zero2, checkpointed": {**zero(2), **CHECKPOINTED},
    "zero2, reentrant": {**zero(2), **REENTRANT},
    "zero2, lora": {**zero(2, overlap_comm=True), **LORA},
    "zero2, lora, accumulating": {**zero(2), **LORA, **THREE},
    "zero3": zero(3),
    "zero3, stock": zero(3, **STOCK_3),
    "zero3, stock, accumulating": {**zero(3, **STOCK_3), **THREE},
    "zero3, persistent": zero(3, stage3_param_persistence_threshold=40),
    "zero3, prefetching": zero(3, stage3_param_persistence_threshold=0, stage3_prefetch_bucket_size=4000,
                               stage3_max_live_parameters=9000, stage3_max_reuse_distance=2000),
    "zero3, all-reduce": zero(3, reduce_scatter=False, stage3_param_persistence_threshold=0),
    "zero3, not contiguous": zero(3, contiguous_gradients=False, stage3_param_persistence_threshold=0),
    "zero3, sub groups": zero(3, sub_group_size=4000, stage3_param_persistence_threshold=0),
    "zero3, checkpointed": {**zero(3, stage3_param_persistence_threshold=0), **CHECKPOINTED},
    "zero3, reentrant": {**zero(3, stage3_param_persistence_threshold=0), **REENTRANT},
    "zero3, stock, reentrant": {**zero(3, **STOCK_3), **REENTRANT},
    "zero3, lora": {**zero(3, stage3_param_persistence_threshold=0), **LORA},
    "zero3, lora, stock, reentrant": {**zero(3, **STOCK_3), **LORA, **REENTRANT},
    "zero3, not divided first": zero(3, stage3_param_persistence_threshold=0),
    "zero3, lora, not divided first": {**zero(3, stage3_param_persistence_threshold=0), **LORA},
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ZeroCase]:
    """The cases have an odd vocabulary, so partitions have padding and split parameters."""
    common = tiny_run(tmp_path_factory.mktemp("models"))
    return {name: ZeroCase({**common, **config}, "not divided first" not in name) for name, config in CASES.items()}


@pytest.fixture(scope="module")
def for_real(cases: dict[str, ZeroCase]) -> dict[str, list[Ledger]]:
    """Every case in the same two processes."""
    return dict(zip(cases, record_with_deepspeed(list(cases.values()), 2), strict=True))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_our_engine_allocates_the_same_as_deepspeed(
    name: str, rank: int, cases: dict[str, ZeroCase], for_real: dict[str, list[Ledger]]
) -> None:
    on_meta = record_zero_on_meta(cases[name], 2, rank=rank)
    real = for_real[name][rank]
    loads = "zero3" not in name or "not divided first" in name  # otherwise the oracle has loaded in another way
    first = 0 if loads else 1
    only_meta, only_real = (
        _describe(on_meta, first) - _describe(real, first),
        _describe(real, first) - _describe(on_meta, first),
    )
    assert (only_meta, only_real) == (Counter(), Counter())
    # a gloo thread may hold what it has exchanged a little longer than the step does
    late = max((each.nbytes for each in on_meta.allocations if each.role == "workspace" and _counts(each)), default=0)
    phases: tuple[Phase, ...] = ("load", "forward", "backward", "optimizer")
    for phase in phases[first:]:
        for step in (0,) if phase == "load" else (1, 2):
            expected, found = _peak(on_meta, phase, step), _peak(real, phase, step)
            assert expected <= found <= expected + late, (phase, step)


def _describe(ledger: Ledger, first: int) -> Counter[Any]:
    counted = (each for each in ledger.allocations if each.step >= first and _counts(each))
    return Counter((each.step, each.phase, _operator(each.op), each.nbytes) for each in counted)


def _operator(name: str) -> str:
    """An operator's name without the purpose before it."""
    return name.partition("(")[2].removesuffix(")") if "(" in name else name


def _counts(each: Allocation) -> bool:
    """Whether an allocation is compared. Scalars are left out, because on a CPU it is not known which of them are on
    the host. Saving is left out too: the DeepSpeed run does not save."""
    return each.device == "gpu" and each.nbytes > 32 and each.phase != "save"


def _peak(ledger: Ledger, phase: Phase, step: int) -> int:
    """The most bytes that are alive at the same time in a phase of a step."""
    changes = [(each.allocated_tick, each.nbytes) for each in ledger.allocations if _counts(each)]
    changes += [(each.freed_tick, -each.nbytes) for each in ledger.allocations if _counts(each)]
    live = most = 0
    for tick, change in sorted(changes):
        live += change
        mark = ledger.mark_at(tick)
        if (mark.phase, mark.step) == (phase, step):
            most = max(most, live)
    return most
