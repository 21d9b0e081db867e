"""A refusal of a model's configuration or class is reported as an error that the user can correct."""

from __future__ import annotations

import json

import pytest

import axmem_trace
from axmem_trace.errors import ConfigError
from axmem_trace.models.skeleton import model_class

HRM = {
    "model_type": "hrm_text",
    "architectures": ["HrmTextForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_layers_per_stack": 1,
}
KEYS = {"sequence_len": 64, "micro_batch_size": 1, "learning_rate": 1e-4, "datasets": [{"path": "x", "type": "alpaca"}]}


def test_an_attention_kernel_that_the_configuration_refuses(tmp_path):
    """HrmTextConfig refuses it as soon as it is set: a prefix mask has four dimensions."""
    (tmp_path / "config.json").write_text(json.dumps(HRM))
    config = {**KEYS, "base_model": str(tmp_path), "attn_implementation": "flash_attention_2"}
    pytest.importorskip("transformers.models.hrm_text")
    (refusal,) = axmem_trace.estimate(config, hub="never").refusals
    assert refusal.key == "attn_implementation"
    assert "prefix_lm" in refusal.reason


def test_a_package_that_does_not_work_here_is_named(monkeypatch, tmp_path):
    """transformers' lazy loader: `ModuleNotFoundError: Could not import module ...` from what timm's import raised."""

    def find(*_):
        raise ModuleNotFoundError("Could not import module 'X'") from RuntimeError(
            "operator torchvision::nms is missing"
        )

    monkeypatch.setattr(model_class, "_find_model_class", find)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="because of RuntimeError: operator torchvision::nms") as caught:
        axmem_trace.estimate({**KEYS, "base_model": str(tmp_path)}, hub="never")
    assert caught.value.key == "base_model"
