"""Configurations of models with many tiny layers, and their reports with every layer traced, from another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import axmem_trace
from support.hybrid_models import HYBRIDS
from support.new_process import in_new_process
from support.tiny_models import TINY

NUM_LAYERS = 9
"""The fewest that are folded where the fixture `short_models_fold` is used: models of 5 and 4 layers are traced."""
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
OWN_CODE = {
    "configuration_own.py": """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own_lm"
""",
    "modeling_own.py": """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from .configuration_own import OwnConfig

class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig
    _no_split_modules = []

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(config.num_hidden_layers)
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.embed_tokens(input_ids)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden) * (number + 1)
        logits = self.lm_head(hidden)
        return CausalLMOutput(loss=self.loss_function(logits, labels, self.config.vocab_size), logits=logits)
""",
}
"""A base model's own code."""
OWN_MODEL: dict[str, Any] = {
    "model_type": "own_lm",
    "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    "vocab_size": 96,
    "hidden_size": 32,
    "torch_dtype": "bfloat16",
}
FAMILIES = {**TINY, **HYBRIDS, "own code": OWN_MODEL}
MODEL_KEYS = "model"
"""The key of a case that holds changes of its family's `config.json`."""


def make_config(directory: Path, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a case, which has keys of axolotl, `family`, and `model`."""
    keys = dict(case)
    family, changes = keys.pop("family", "llama"), keys.pop(MODEL_KEYS, {})
    home = directory / name.replace(" ", "-").replace(",", "")
    home.mkdir(parents=True, exist_ok=True)
    config = {**FAMILIES[family], "num_hidden_layers": NUM_LAYERS, **changes}
    (home / "config.json").write_text(json.dumps(config))
    for file, code in OWN_CODE.items() if family == "own code" else ():
        (home / file).write_text(code)
    return {"base_model": str(home), **COMMON, **keys}


def report_of(config: dict[str, Any], *, fold: bool) -> dict[str, Any]:
    """The whole report as plain data, without the seconds and without the choice `fold`."""
    trusted = bool(config.get("trust_remote_code"))
    report = axmem_trace.estimate(config, hub="never", assumptions={"fold": fold}, trust_remote_code=trusted).to_dict()
    del report["elapsed_seconds"]
    report["choices"].pop("fold", None)
    plain: dict[str, Any] = json.loads(json.dumps(report))
    return plain


def unfolded_reports(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reports with every layer traced. They come from a separate process, which has none of this process's patches."""
    return in_new_process(_unfolded_reports, configs)


def _unfolded_reports(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: report_of(config, fold=False) for name, config in configs.items()}
