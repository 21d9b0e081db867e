"""The configuration that tests of runs on several GPUs share: small enough for arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_models import write_tiny_model


def make_rank_config(directory: Path, family: str = "llama", **keys: Any) -> dict[str, Any]:
    """Two rows of 24 tokens, all padded to full length. The `keys` of axolotl are added or replace others."""
    return {
        "base_model": write_tiny_model(family, directory / family),
        "sequence_len": 24,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch_fused",
        "bf16": True,
        "attn_implementation": "flash_attention_2",
        "datasets": [{"path": "x", "type": "alpaca"}],
        "pad_to_sequence_len": True,
        **keys,
    }
