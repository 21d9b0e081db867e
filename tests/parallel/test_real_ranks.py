"""Compares the fake process group on meta with two real processes on the CPU, which communicate by gloo, allocation by
allocation.

It finds a wrong stream, a gather that is freed too late, or a bucket of another size. The optimizer's step is not
compared here, because on a CPU torch updates one parameter at a time; other tests compare it with a real step.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.real_ranks import Case, assert_same, record_for_real, record_on_meta, tiny_run

from axmem_trace.ledger import Ledger

LORA = {"adapter": "lora", "lora_r": 3, "lora_alpha": 8, "lora_target_linear": True}
"""LoRA with rank 3 on two GPUs: one of A's rows is padding."""
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
FSDP1 = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
DPO = {"rl": "dpo"}
"""A full fine-tune: the reference is a second model with its own wrapper."""
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddp": ({}, {}),
    "ddp, accumulating": ({"gradient_accumulation_steps": 3}, {}),
    "ddp, lora": ({**LORA, "ddp_bucket_cap_mb": 1}, {}),
    "fsdp2": (FSDP2, {}),
    "fsdp2, accumulating": ({**FSDP2, "gradient_accumulation_steps": 3}, {}),
    "fsdp2, kept between passes": ({"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}}, {}),
    "fsdp2, checkpointed": ({**FSDP2, **CHECKPOINTED}, {}),
    "fsdp2, reentrant": ({**FSDP2, **REENTRANT}, {}),
    "fsdp2, its own checkpointing": (
        {"fsdp_version": 2, "fsdp_config": {"activation_checkpointing": True}, "gradient_checkpointing": False}, {},
    ),
    "fsdp2, lora": ({**FSDP2, **LORA}, {}),
    "fsdp2, lora apart": ({**FSDP2, **LORA}, {"adapters": "own"}),
    "fsdp2, by size": (
        {"fsdp_version": 2, "fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 3000}}, {},
    ),
    "fsdp1": (FSDP1, {}),
    "fsdp1, accumulating": ({**FSDP1, "gradient_accumulation_steps": 3}, {}),
    "fsdp1, checkpointed": ({**FSDP1, **CHECKPOINTED}, {}),
    "fsdp1, prefetching": (FSDP1, {"prefetch": "pre"}),
    "fsdp1, kept between passes": (FSDP1, {"sharding_strategy": "SHARD_GRAD_OP"}),
    "fsdp1, flat parameters": (FSDP1, {"uses_orig_params": False}),
    "fsdp1, states not sent": (FSDP1, {"syncs_states": False}),
    "ddp, dpo": (DPO, {}),
    "fsdp2, dpo": ({**FSDP2, **DPO}, {}),
    "fsdp2, dpo in tiles": ({**FSDP2, **DPO, "dpo_use_liger_kernel": True}, {}),
    "fsdp2, lora, dpo in tiles": ({**FSDP2, **DPO, **LORA, "dpo_use_liger_kernel": True}, {}),
    "fsdp1, dpo": ({**FSDP1, **DPO}, {}),
    "fsdp1, lora": ({**FSDP1, **LORA}, {"param_dtype": ""}),
}  # fmt: skip
"""Keys of the configuration, and fields that no key sets."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The cases have an odd vocabulary, so the shards of the embedding differ between the ranks."""
    common = tiny_run(tmp_path_factory.mktemp("models"))
    # FSDP1 keeps adapters in fp32 and gathers them in bf16, which needs autocast: here all is bf16
    return {
        name: Case({**common, **config}, changes, *(("base", "0.19.0") if name.startswith("fsdp1") else ()))
        for name, (config, changes) in CASES.items()
    }


@pytest.fixture(scope="module")
def for_real(cases: dict[str, Case]) -> dict[str, list[Ledger]]:
    """Every case in the same two processes."""
    return dict(zip(cases, record_for_real(list(cases.values()), 2), strict=True))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_meta_allocates_the_same_as_real_ranks(
    name: str, rank: int, cases: dict[str, Case], for_real: dict[str, list[Ledger]]
) -> None:
    on_meta = record_on_meta(cases[name], 2, rank=rank)
    assert_same(on_meta, for_real[name][rank])


@pytest.mark.parametrize("rank", [0, 1])
def test_optimizer_states_of_fsdp1_s_ranks_are_the_real_ones(
    rank: int, cases: dict[str, Case], for_real: dict[str, list[Ledger]]
) -> None:
    """The ranks have parts of other parameters, and so states of other sizes."""
    first, second = (_states(ledger) for ledger in for_real["fsdp1"])
    assert first != second
    assert _states(record_on_meta(cases["fsdp1"], 2, rank=rank)) == (first, second)[rank]


def _states(ledger: Ledger) -> list[int]:
    return sorted(each.nbytes for each in ledger.allocations if each.role == "optimizer" and each.nbytes > 8)
