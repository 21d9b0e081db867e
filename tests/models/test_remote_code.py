"""A base model's own code: named before it runs, and run only if it was allowed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from axmem_trace import estimate
from axmem_trace.errors import ConfigError

CONFIGURATION = """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own_lm"

    def __init__(self, vocab_size=64, hidden_size=8, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)
"""
MODELING = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from .configuration_own import OwnConfig

class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.up_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = self.lm_head(self.up_proj(self.embed_tokens(input_ids)))
        return CausalLMOutput(loss=self.loss_function(logits, labels, self.config.vocab_size), logits=logits)
"""
CODE = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def configure(directory: Path, **changes: Any) -> dict[str, Any]:
    config = {"model_type": "own_lm", "auto_map": CODE, "vocab_size": 96, "hidden_size": 16, "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    (directory / "configuration_own.py").write_text(CONFIGURATION, encoding="utf-8")
    (directory / "modeling_own.py").write_text(MODELING, encoding="utf-8")
    return {"base_model": str(directory), "micro_batch_size": 1, "learning_rate": 0.1, "sequence_len": 16}


@pytest.mark.parametrize(("asked", "allowed"), [(False, False), (True, False), (False, True)])
def test_code_that_was_not_allowed_twice_is_named_but_not_run(tmp_path, asked, allowed):
    keys = configure(tmp_path)
    for name in ("configuration_own.py", "modeling_own.py"):
        (tmp_path / name).write_text("raise SystemExit('was run')", encoding="utf-8")
    with pytest.raises(ConfigError, match="--trust-remote-code") as caught:
        estimate({**keys, "trust_remote_code": asked}, hub="never", trust_remote_code=allowed)
    assert caught.value.key == "trust_remote_code"
    assert "configuration_own.py (OwnConfig), modeling_own.py (OwnForCausalLM)" in caught.value.details[0]


def test_allowed_code_is_named_before_it_runs(tmp_path, capfd):
    keys = configure(tmp_path)
    report = estimate({**keys, "trust_remote_code": True}, hub="never", trust_remote_code=True)
    # Embedding and head 96 x 16 each; one linear layer of 16 x 16 with its bias.
    assert report.model.parameters == 2 * 96 * 16 + 16 * 16 + 16
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("axmem_trace: running")]
    assert said == [f"axmem_trace: running the code {reference} of {tmp_path}" for reference in CODE.values()]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoConfig": CODE["AutoConfig"]}}, "names no AutoModelForCausalLM"),
        ({"auto_map": {**CODE, "AutoConfig": "nowhere.OwnConfig"}}, "nowhere.OwnConfig"),
        ({"auto_map": None}, "has no model type 'own_lm'"),
    ],
)
def test_broken_maps_are_reported(tmp_path, changes, words):
    keys = configure(tmp_path, **changes)
    with pytest.raises(ConfigError, match=words):
        estimate({**keys, "trust_remote_code": True}, hub="never", trust_remote_code=True)
