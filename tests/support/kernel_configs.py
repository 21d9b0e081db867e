"""Configurations of tiny models that select kernels, and the warnings of their reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axmem_trace import Report
from support.tiny_models import write_tiny_model

TOKENS = 64


def configure(family: str, directory: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base_model": write_tiny_model(family, directory),
        "sequence_len": TOKENS,
        "micro_batch_size": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "bf16": True,
        "pad_to_sequence_len": True,
        "attn_implementation": "flash_attention_2",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **changes,
    }


def warned(report: Report) -> dict[str, str]:
    return {note.key: note.text for note in report.notes if note.kind == "warning"}
