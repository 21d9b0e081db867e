"""An error in a model's own code is reported to the user; a bug in this package keeps its traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.multimodal_models import MULTIMODAL

import axmem_trace
from axmem_trace.errors import ConfigError
from axmem_trace.training.objectives import supervised

CTRL = {
    "model_type": "ctrl",
    "architectures": ["CTRLLMHeadModel"],
    "vocab_size": 64,
    "n_positions": 32,
    "n_embd": 32,
    "dff": 48,
    "n_layer": 2,
    "n_head": 4,
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
DBRX = {
    "model_type": "dbrx",
    "architectures": ["DbrxForCausalLM"],
    "vocab_size": 64,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 1,
    "max_seq_len": 32,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 2},
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["Wq", "Wv"]}


def estimate(directory: Path, model: dict[str, Any], **keys: Any) -> None:
    (directory / "config.json").write_text(json.dumps(model))
    base = {
        "base_model": str(directory),
        "sequence_len": 16,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "datasets": [{"path": "x", "type": "alpaca"}],
        "attn_implementation": "eager",
    }
    axmem_trace.estimate({**base, **keys}, hub="never")


def test_embeddings_changed_in_place_under_an_adapter(tmp_path):
    """modeling_ctrl.py: `inputs_embeds *= np.sqrt(self.d_model_size)`. On a CPU torch refuses it too."""
    with pytest.raises(ConfigError, match="changes its embeddings in place") as caught:
        estimate(tmp_path, CTRL, **LORA)
    assert "modeling_ctrl.py, line" in str(caught.value)


def test_an_error_in_a_models_code_is_reported_with_its_line(tmp_path):
    """modeling_dbrx.py: without `clip_qkv`, `clamp` gets neither a minimum nor a maximum."""
    with pytest.raises(ConfigError, match="stops in its own code") as caught:
        estimate(tmp_path, DBRX)
    assert "clamp" in str(caught.value)
    assert "modeling_dbrx.py, line" in str(caught.value)


def test_a_bug_in_this_package_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "make_batch", None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        estimate(tmp_path, LLAMA)


@pytest.mark.parametrize("reentrant", [True, False])
def test_reentrant_checkpointing_over_an_input_that_layers_share(tmp_path, reentrant):
    """Llama 3.2: both layers cross-attend to the tower's output, which requires gradients. On a CPU torch stops too."""
    model = {
        **MULTIMODAL["mllama"],
        "text_config": {**MULTIMODAL["mllama"]["text_config"], "cross_attention_layers": [0, 1]},
    }
    keys = {
        "processor_type": "AutoProcessor",
        "sequence_len": 96,
        "gradient_checkpointing": True,
        "bf16": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    if not reentrant:
        estimate(tmp_path, model, **keys)
        return
    with pytest.raises(ConfigError, match="use_reentrant: false") as caught:
        estimate(tmp_path, model, **keys)
    assert caught.value.key == "gradient_checkpointing"
