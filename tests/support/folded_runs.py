"""Configurations of models with many tiny layers, and their reports with every layer traced, made in another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import axmem_trace
from support.new_process import in_new_process
from support.tiny_models import TINY

NUM_LAYERS = 15
"""A few more than the fewest that are folded: of equal layers, models of 5 and 4 are traced (`models/repeated_layers.py`
`WORTH_FOLDING`: together at most three quarters)."""
COMMON: dict[str, Any] = {
    "sequence_len": 32,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-4,
    "bf16": True,
    "gradient_checkpointing": True,
    "optimizer": "adamw_torch_fused",
    "attn_implementation": "sdpa",
    "datasets": [{"path": "x", "type": "alpaca"}],
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
MODEL_KEYS = "model"
"""In a case: what its `config.json` has in addition to that of its family."""


def make_config(directory: Path, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a case: keys of axolotl, `family`, and `model`."""
    keys = dict(case)
    family, changes = keys.pop("family", "llama"), keys.pop(MODEL_KEYS, {})
    home = directory / name.replace(" ", "-").replace(",", "")
    home.mkdir(parents=True, exist_ok=True)
    config = {**TINY[family], "num_hidden_layers": NUM_LAYERS, **changes}
    (home / "config.json").write_text(json.dumps(config))
    return {"base_model": str(home), **COMMON, **keys}


def report_of(config: dict[str, Any], *, fold: bool) -> dict[str, Any]:
    """The whole report as plain data, less seconds and less what was assumed about folding."""
    report = axmem_trace.estimate(config, hub="never", assumptions={"fold": fold}).to_dict()
    del report["elapsed_seconds"]
    report["choices"].pop("fold", None)
    plain: dict[str, Any] = json.loads(json.dumps(report))
    return plain


def unfolded_reports(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every layer traced, in a process of its own: no patch of this one reaches it."""
    return in_new_process(_unfolded_reports, configs)


def _unfolded_reports(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: report_of(config, fold=False) for name, config in configs.items()}
