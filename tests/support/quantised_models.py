"""Two-layer models whose sizes are multiples of every block and group size, built on meta from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axmem_trace.config import read_recipe
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel
from support.tiny_models import write_tiny_model

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["q_proj"]}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
INT8 = {**LORA, "load_in_8bit": True}


def build(directory: Path, keys: dict[str, Any], *, family: str = "llama", gpu: str = "", **changes: Any) -> BuiltModel:
    """A small model of the family with the configuration `keys`. `changes` change its `config.json`."""
    config = {
        "base_model": write_tiny_model(family, directory, **{**SIZES, **changes}),
        "sequence_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return build_model(read_recipe(config, hub="never", gpu=gpu))


def weight_bytes(built: BuiltModel) -> int:
    return sum(fact.nbytes for fact in built.facts.tensors if fact.role == "weight")


def dtypes_of(built: BuiltModel, ending: str) -> set[str]:
    found = {fact.dtype for fact in built.facts.tensors if fact.name.endswith(ending)}
    assert found, f"no tensor is called *{ending}"
    return found
