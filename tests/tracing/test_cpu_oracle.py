"""The CPU oracle: a real training step of a tiny model allocates what the same step on meta does, byte for byte.

It proves that the recorder is faithful to eager PyTorch, for each architecture and each way of checkpointing. What a
GPU does otherwise is the kernels' rules' business, which are switched off here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, write_tiny_model

from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.models import build_model
from axmem_trace.recipe import read_recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.step import Run

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
"""These run in fp32: a CPU's layer norm keeps bf16 statistics of bf16 input where meta, like a GPU, keeps fp32."""
ASSUMPTIONS = ["autocast=false", "adapter_dtype=base", "optimizer_implementation=foreach"]
"""All in bf16, so that a CPU can run it without autocast; transformers still computes softmax, norms and loss in fp32."""


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", TINY)
def test_meta_allocates_what_a_real_step_does(family: str, adapter: str, checkpointing: str, tmp_path: Path) -> None:
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
    on_meta, for_real = record(config, "meta"), record(config, "cpu")
    assert describe(on_meta) == describe(for_real)
    assert curve(on_meta) == curve(for_real)
    assert max(curve(on_meta)) > on_meta.peak(phase="load").allocated_bytes


def record(config: dict[str, Any], device: str) -> Ledger:
    """Two steps on the device, with no rule for any GPU kernel."""
    recipe = read_recipe(config, hub="never", assumptions=ASSUMPTIONS)
    recipe = replace(recipe, precision=replace(recipe.precision, upcast_before=False))
    built = build_model(recipe, device=device)
    recorder = Recorder(traced_device=device, with_rules=False)
    run = Run(recipe, built, build_optimizer(recipe, built.module), recorder)
    with recorder, recorder.watch(built.module):
        run.record()
    return recorder.make_ledger()


def describe(ledger: Ledger) -> Counter[Any]:
    """All allocations of loading, forward and backward as a multiset of everything but time.

    The optimizer's own tests compare its step with a real one: here its counters, which live on the host, cannot be
    told from what stands for the GPU.
    """

    def facts(each: Allocation) -> Any:
        return (each.nbytes, each.phase, each.module, each.op, each.role, each.recomputed, each.kept, each.output)

    return Counter(facts(each) for each in ledger.allocations if each.step <= 1 and each.phase != "optimizer")


def curve(ledger: Ledger) -> list[int]:
    """Live bytes after each birth and death until the first optimizer step begins."""
    ticks, levels = ledger.levels
    end = next(mark.tick for mark in ledger.marks if mark.phase == "optimizer")
    return [level for tick, level in zip(ticks, levels, strict=True) if tick < end]
