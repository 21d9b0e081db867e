"""ZeRO on meta against DeepSpeed itself in two real processes on the CPU: allocation by allocation.

DeepSpeed's accelerator for CPUs has no streams; what runs, in which order and with which tensors, is the same.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.real_zero import HAS_DEEPSPEED, ZeroCase, record_with_deepspeed, record_zero_on_meta
from support.tiny_models import write_tiny_model

from axmem_trace.ledger import Allocation, Ledger, Phase

pytestmark = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="deepspeed is not installed: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed"
)

LORA = {"adapter": "lora", "lora_r": 3, "lora_alpha": 8, "lora_target_linear": True}
THREE = {"gradient_accumulation_steps": 3}
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


def zero(stage: int, *, top: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """A `deepspeed` key. The bucket holds some of the tiny model's parameters, and not its embedding."""
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 3000, **settings},
            "bf16": {"enabled": True},
            "gradient_clipping": 1.0,
            **(top or {}),
        }
    }


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
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ZeroCase]:
    """An odd vocabulary: partitions have padding, and cut parameters in two."""
    folder: Path = tmp_path_factory.mktemp("models")
    common = {
        "base_model": write_tiny_model("llama", folder / "llama", vocab_size=97), "sequence_len": 24,
        "micro_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-4, "optimizer": "adamw_torch",
        "attn_implementation": "eager", "bf16": True, "lora_mlp_kernel": False, "lora_qkv_kernel": False,
        "lora_o_kernel": False, "datasets": [{"path": "x", "type": "alpaca"}], "gradient_checkpointing": False,
    }  # fmt: skip
    return {name: ZeroCase({**common, **config}) for name, config in CASES.items()}


@pytest.fixture(scope="module")
def for_real(cases: dict[str, ZeroCase]) -> dict[str, list[Ledger]]:
    """Every case in the same two processes."""
    return dict(zip(cases, record_with_deepspeed(list(cases.values()), 2), strict=True))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_our_engine_allocates_what_deepspeed_does(
    name: str, rank: int, cases: dict[str, ZeroCase], for_real: dict[str, list[Ledger]]
) -> None:
    on_meta = record_zero_on_meta(cases[name], 2, rank=rank)
    real = for_real[name][rank]
    only_meta, only_real = _describe(on_meta) - _describe(real), _describe(real) - _describe(on_meta)
    assert (only_meta, only_real) == (Counter(), Counter())
    for phase in ("load", "forward", "backward", "optimizer"):
        for step in (0,) if phase == "load" else (1, 2):
            assert _peak(on_meta, phase, step) == _peak(real, phase, step), (phase, step)


def _describe(ledger: Ledger) -> Counter[Any]:
    return Counter((each.step, each.phase, each.op, each.nbytes) for each in ledger.allocations if _counts(each))


def _counts(each: Allocation) -> bool:
    """Numbers are left out: which of them are on the host cannot be known on a CPU."""
    return each.device == "gpu" and each.nbytes > 32


def _peak(ledger: Ledger, phase: Phase, step: int) -> int:
    """The most bytes alive at a time in a phase of a step."""
    changes = [(each.born, each.nbytes) for each in ledger.allocations if _counts(each)]
    changes += [(each.died, -each.nbytes) for each in ledger.allocations if _counts(each)]
    live = most = 0
    for tick, change in sorted(changes):
        live += change
        mark = ledger.mark_at(tick)
        if (mark.phase, mark.step) == (phase, step):
            most = max(most, live)
    return most
