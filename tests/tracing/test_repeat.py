"""A second step that is repeated from the record equals the second step of a real run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

CONFIGS: dict[str, dict[str, Any]] = {
    "full, sdpa, fused": {"optimizer": "adamw_torch_fused"},
    "full, checkpointed, accumulated": {"gradient_checkpointing": True, "gradient_accumulation_steps": 3},
    "lora, foreach": {"adapter": "lora", "lora_r": 4, "lora_target_linear": True, "optimizer": "adamw_torch"},
    "qlora, 8-bit optimizer": {"adapter": "qlora", "load_in_4bit": True, "lora_r": 4, "lora_target_linear": True,
                               "gradient_checkpointing": True, "optimizer": "adamw_bnb_8bit"},
    "activations on the host": {"adapter": "lora", "lora_r": 4, "lora_target_linear": True, "gradient_checkpointing": True,
                                "activation_offloading": True, "gradient_accumulation_steps": 2},
    "checkpointed inputs on the host": {"gradient_checkpointing": True, "activation_offloading": "hidden_states",
                                        "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "activations on the host, one by one": {"gradient_checkpointing": True, "activation_offloading": "legacy"},
    "lomo": {"optimizer": "lomo"},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_repeated_step_equals_a_step_that_was_run(name: str, family: str, tmp_path: Path) -> None:
    config = {
        "base_model": write_tiny_model(family, tmp_path),
        "sequence_len": 32,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **CONFIGS[name],
    }
    run, repeated = record(config, repeat=False), record(config, repeat=True)
    assert describe(repeated) == describe(run)
    assert list(repeated.levels[1]) == list(run.levels[1])
    assert [(m.phase, m.step, m.micro_batch) for m in repeated.marks] == [
        (m.phase, m.step, m.micro_batch) for m in run.marks
    ]
    assert replace(repeated.peak(step=2), tick=0) == replace(run.peak(step=2), tick=0)


def record(config: dict[str, Any], *, repeat: bool) -> Ledger:
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module), repeat=repeat).ledger


def describe(ledger: Ledger) -> Counter[Any]:
    return Counter(
        (each.nbytes, each.phase, each.step, each.module, each.op, each.role, each.kept, each.recomputed, each.device)
        for each in ledger.allocations
    )
