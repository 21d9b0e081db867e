"""The CPU oracle with images and audio: a real step of a tiny multimodal model makes the same allocations as on
meta."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cpu_oracle import describe, record_step
from support.multimodal_models import MULTIMODAL, write_multimodal_model

from axmem_trace.ledger import Allocation

OPTIONS: dict[str, dict[str, Any]] = {
    "gemma4": {"max_soft_tokens": 70},
    "gemma4_unified": {"max_soft_tokens": 70},
    "smolvlm": {"size": {"longest_edge": 56}},
    "idefics3": {"size": {"longest_edge": 56}},
    "lfm2_vl": {"max_image_tokens": 70, "tile_size": 64},
}
DIFFERENT_ON_CPU = {
    "pixtral": ("model.vision_tower", ("aten.cat.default", "aten._to_copy.default")),
    "mistral3": ("model.vision_tower", ("aten.cat.default", "aten._to_copy.default")),
    "gemma3": ("model.vision_tower", ("aten.clone.default",)),
    "gemma4": ("model.vision_tower.pooler", ("aten.arange.default", "aten.eq.Tensor", "aten._to_copy.default",
                                             "aten.aminmax.default", "aten.zeros.default")),
}  # fmt: skip
"""Operators whose allocations are not compared. Pixtral makes its position ids on the host and copies them to a GPU. A
CPU's layer norm returns contiguous gradients, but meta keeps the strides. `one_hot` has another implementation on
meta."""


@pytest.mark.slow
@pytest.mark.parametrize("family", [*(name for name in MULTIMODAL if name != "llama4"), "voxtral"])
def test_meta_allocates_the_same_as_a_real_step(family: str, tmp_path: Path) -> None:
    config = {
        "base_model": write_multimodal_model(family, tmp_path),
        "processor_type": "AutoProcessor",
        "processor_kwargs": OPTIONS.get(family, {}),
        "sequence_len": 96,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "attn_implementation": "eager",
        "bf16": False,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "datasets": [{"path": "x", "type": "chat_template"}],
    }
    on_meta, for_real = record_step(config, "meta"), record_step(config, "cpu")
    leave_out = partial(differs_on_cpu, family)
    assert describe(on_meta, leave_out) == describe(for_real, leave_out)
    tower = {
        each.module
        for each in on_meta.allocations
        if "vision" in each.module or "visual" in each.module or "audio" in each.module or "embed" in each.module
    }
    assert tower


def differs_on_cpu(family: str, each: Allocation) -> bool:
    """Only on a CPU do the scalars of `torch.where` bypass the dispatcher."""
    module, operators = DIFFERENT_ON_CPU.get(family, ("-", ()))
    return each.op == "aten.scalar_tensor.default" or (each.module.startswith(module) and each.op in operators)
