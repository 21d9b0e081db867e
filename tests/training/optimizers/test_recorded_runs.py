"""Optimizers inside a recorded run: the ledger has the same states, in the phase in which they are allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import TracedOptimizer, build_optimizer
from axmem_trace.training.trace import Recording, record_run


def record(tmp_path: Path, **keys: Any) -> tuple[TracedOptimizer, Recording]:
    config = {
        "base_model": write_tiny_model("llama", tmp_path),
        "sequence_len": 16,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "attn_implementation": "flash_attention_2",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    optimizer = build_optimizer(recipe, built.module)
    return optimizer, record_run(recipe, built, optimizer)


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_bnb_8bit", "muon", "lomo", "adafactor", "q_galore"])
def test_ledger_holds_the_states(tmp_path, name):
    keys = {"optimizer": name}
    if name == "q_galore":
        keys = {"optimizer": "q_galore_adamw8bit", "qgalore_rank": 16, "qgalore_proj_group_size": 32}
    optimizer, recording = record(tmp_path, **keys)
    ledger = recording.ledger
    states = [each for each in ledger.on_gpu if each.role == "optimizer" and each.alive(ledger.ticks)]
    assert sum(each.nbytes for each in states) == optimizer.state_bytes()
    assert {each.phase for each in states} <= {"optimizer"}
    # Adafactor allocates each parameter's root mean square again in every step. All other states exist from the first
    # step on.
    assert {each.nbytes for each in states if each.step == 2} == ({4} if name == "adafactor" else set())
    gradients = [each for each in ledger.on_gpu if each.role == "gradient"]
    assert all(not each.alive(ledger.ticks) for each in gradients)
