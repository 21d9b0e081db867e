"""Runs on several GPUs that certainly fail after axolotl's validators have accepted them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe

FSDP1 = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
TP = {"tensor_parallel_size": 2, "save_only_model": True}
OWN = {"fsdp_version": 2, "fsdp_config": {"activation_checkpointing": True}}
REENTRANT = {"rl": "dpo", "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


def refusals(directory: Path, keys: dict[str, Any], gpus: int, release: str) -> list[str]:
    config = {
        "base_model": write_tiny_model("llama", directory / "llama", tie_word_embeddings=False),
        "sequence_len": 24,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "attn_implementation": "flash_attention_2",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return [note.text for note in read_recipe(config, num_gpus=gpus, axolotl=release, hub="never").refusals]


@pytest.mark.parametrize(
    ("keys", "gpus", "release", "words"),
    [
        ({**OWN, "gradient_checkpointing": True}, 2, "0.21.0", "activation_checkpointing together with"),
        ({**FSDP1, "fsdp_config": {"reshard_after_forward": True}}, 2, "0.19.0", "KeyError 'TRUE'"),
        ({"fsdp": ["full_shard", "auto_wrap"]}, 2, "0.19.0", "fails without it"),
        ({**TP, **FSDP2, "dp_shard_size": 2}, 4, "0.19.0", "2 x 1 is not the number of GPUs, 4"),
        ({"tensor_parallel_size": 2}, 2, "0.21.0", "can't save the optimizer"),
        ({**TP, **FSDP2, "dp_shard_size": 2, "dp_replicate_size": 2}, 8, "0.21.0", "with dp_replicate_size"),
        ({**TP, **FSDP2, "dp_shard_size": 2, "context_parallel_size": 2}, 8, "0.21.0", "with context_parallel_size"),
        ({**QLORA, **REENTRANT}, 2, "0.19.0", "use_reentrant: true"),
        ({**QLORA, **REENTRANT}, 2, "0.21.0", "use_reentrant: true"),
    ],
)
def test_a_run_that_fails_is_refused(tmp_path: Path, keys: dict[str, Any], gpus: int, release: str, words: str) -> None:
    (reason,) = refusals(tmp_path, keys, gpus, release)
    assert words in reason


@pytest.mark.parametrize(
    ("keys", "gpus", "release"),
    [
        ({**OWN, "gradient_checkpointing": False}, 2, "0.21.0"),
        ({**OWN, "gradient_checkpointing": True}, 1, "0.21.0"),  # without FSDP
        (FSDP1, 2, "0.19.0"),
        ({**FSDP2}, 2, "0.19.0"),
        ({**TP}, 2, "0.21.0"),
        ({"tensor_parallel_size": 2, "save_strategy": "no"}, 2, "0.21.0"),
        ({**TP, "dp_shard_size": 2, **FSDP2}, 4, "0.21.0"),
        ({**QLORA, **REENTRANT}, 1, "0.21.0"),
        ({**LORA, **REENTRANT}, 2, "0.21.0"),
    ],
)
def test_a_similar_run_is_possible(tmp_path: Path, keys: dict[str, Any], gpus: int, release: str) -> None:
    assert refusals(tmp_path, keys, gpus, release) == []
