"""A scan that is recomputed for backward allocates the same as in forward, including the bounds of packed samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.hybrid_models import write_hybrid
from support.whole_runs import record

from axmem_trace.config import read_recipe

_SCANS = {"qwen3_5": "linear_attn", "qwen3_5_moe": "linear_attn", "qwen3_next": "linear_attn", "nemotron_h": "mixer"}
_LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "in_proj_qkv"]}
Made = Counter[tuple[str, int]]


def _made_by_scans(directory: Path, family: str, checkpointing: dict[str, Any], **keys: Any) -> tuple[Made, Made]:
    """Operators and bytes of the allocations of linear layers' scans, in forward and in recomputation."""
    config = {
        "base_model": write_hybrid(family, directory / family),
        "sequence_len": 256,
        "sample_packing": True,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "optimizer": "adamw_torch_fused",
        "attn_implementation": "flash_attention_2",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **checkpointing,
        **keys,
    }
    ledger, _ = record(read_recipe(config, hub="never"))
    made = [
        each for each in ledger.allocations if each.step == 1 and each.module.endswith(f"layers.0.{_SCANS[family]}")
    ]
    forward = Counter((each.op, each.nbytes) for each in made if each.phase == "forward")
    return forward, Counter((each.op, each.nbytes) for each in made if each.recomputed)


@pytest.mark.parametrize("keys", [{}, _LORA], ids=["full", "lora"])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", sorted(_SCANS))
def test_recomputation_allocates_the_same_as_forward(family, use_reentrant, keys, tmp_path):
    arguments = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    plain, nothing = _made_by_scans(tmp_path, family, {}, **keys)
    checkpointed, again = _made_by_scans(tmp_path, family, arguments, **keys)
    assert not nothing
    assert sum(plain.values()) > 10
    assert again == plain
    # the bounds of both samples, int32: they begin at 0, and the row ends at 256
    if family != "nemotron_h":
        assert again["aten.cat.default", 3 * 4] == checkpointed["aten.cat.default", 3 * 4] == 1
