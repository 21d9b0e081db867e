"""The CPU oracle: a real training step of a tiny model allocates what the same step on meta does, byte for byte.

It proves that the recorder agrees with eager PyTorch, for each architecture and each kind of checkpointing. The rules
for kernels, which describe the differences of a GPU, are disabled here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.cpu_oracle import describe, record_step
from support.tiny_models import TINY, write_tiny_model

from axmem_trace.ledger import Ledger

ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_linear": True},
}
CHECKPOINTING: dict[str, dict[str, Any]] = {
    "none": {"gradient_checkpointing": False},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "non-reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}
WITH_LAYER_NORM = ("falcon", "gpt_neox")
"""These run in fp32: for bf16 input a CPU's layer norm keeps bf16 statistics, but meta keeps fp32, like a GPU."""


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", TINY)
def test_meta_allocates_the_same_as_a_real_step(family: str, adapter: str, checkpointing: str, tmp_path: Path) -> None:
    config = {
        "base_model": write_tiny_model(family, tmp_path / family),
        "sequence_len": 24,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "attn_implementation": "eager",
        "bf16": family not in WITH_LAYER_NORM,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **ADAPTERS[adapter],
        **CHECKPOINTING[checkpointing],
    }
    on_meta, for_real = record_step(config, "meta"), record_step(config, "cpu")
    assert describe(on_meta) == describe(for_real)
    assert curve(on_meta) == curve(for_real)
    assert max(curve(on_meta)) > on_meta.peak(phase="load").allocated_bytes


def curve(ledger: Ledger) -> list[int]:
    """Live bytes after each allocation and free until the first optimizer step begins."""
    ticks, levels = ledger.levels
    end = next(mark.tick for mark in ledger.marks if mark.phase == "optimizer")
    return [level for tick, level in zip(ticks, levels, strict=True) if tick < end]
