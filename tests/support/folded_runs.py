"""Configurations of models with many tiny layers, and their reports with every layer traced, made in another process.

`python -m support.folded_runs FILE` reads a JSON object of configurations by name, and prints one of reports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import axmem_trace
from support.paths import ROOT, TESTS
from support.tiny_models import TINY

NUM_LAYERS = 15
"""The fewest that are folded: of 15 equal layers, models of 5 and 6 are traced (`models/repeated_layers.py`
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


def unfolded_reports(configs: dict[str, dict[str, Any]], directory: Path) -> dict[str, dict[str, Any]]:
    """Every layer traced, in a process of its own: no patch of this one reaches it."""
    path = directory / "configs.json"
    path.write_text(json.dumps(configs))
    command = [sys.executable, "-m", "support.folded_runs", str(path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=TESTS,
        timeout=1800,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}"},
    )
    assert done.returncode == 0, done.stderr
    reports: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return reports


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({name: report_of(config, fold=False) for name, config in asked.items()}))
