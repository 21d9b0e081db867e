"""`model_type` without a class, targets without a module, a base model that does not exist: the run and its
messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError

BASE: dict[str, Any] = {
    "micro_batch_size": 1,
    "sequence_len": 64,
    "learning_rate": 1e-4,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "datasets": [{"path": "d", "type": "alpaca"}],
}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yml"
    model = write_tiny_model("llama", tmp_path / "llama")
    rest = "\n".join(f"{key}: {value}" for key, value in BASE.items() if key not in ("datasets", "lora_target_linear"))
    path.write_text(f"base_model: {model}\n{text}{rest}\ndatasets: [{{path: d, type: alpaca}}]\n", encoding="utf-8")
    return path


def test_with_remote_code_the_class_is_not_required(tmp_path: Path):
    """axolotl 0.19 `loaders/model.py` `_build_model`."""
    path = write(tmp_path, "model_type: llama\ntrust_remote_code: true\nlora_target_linear: true\n")
    report = axmem_trace.estimate(path, hub="never")
    assert not report.refusals
    assert report.model.class_name == "LlamaForCausalLM"
    (note,) = [note for note in report.notes if note.key == "model_type"]
    assert (note.kind, note.line) == ("ignored", 2)


def test_with_gptq_the_class_is_not_required_either(tmp_path: Path):
    own = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    model = write_tiny_model("llama", tmp_path / "gptq", quantization_config=own)
    recipe = read_recipe({**BASE, "base_model": model, "gptq": True, "model_type": "nosuch"}, hub="never")
    assert recipe.model.type_of_model == ""


def test_otherwise_the_run_fails_and_the_figures_are_those_of_the_auto_class(tmp_path: Path):
    path = write(tmp_path, "model_type: llama\nlora_target_linear: true\n")
    report = axmem_trace.estimate(path, hub="never")
    (refusal,) = report.refusals
    assert (refusal.key, refusal.line, refusal.value) == ("model_type", 2, "llama")
    assert "AutoModelForCausalLM" in refusal.reason
    plain = axmem_trace.estimate(write(tmp_path, "lora_target_linear: true\n"), hub="never")
    assert plain.peak == report.peak


def test_a_target_that_matches_nothing_is_a_warning_with_its_line(tmp_path: Path):
    path = write(tmp_path, "lora_target_modules:\n  - q_proj\n  - zz_proj\n  - self_attn.v_proj\n")
    notes = axmem_trace.estimate(path, hub="never").notes
    (note,) = [note for note in notes if note.key == "lora_target_modules"]
    assert (note.kind, note.line) == ("warning", 4)
    assert note.text.startswith("no module is called `zz_proj`")
    assert "k_proj, o_proj, q_proj, up_proj, v_proj" in note.text


def test_names_of_experts_that_peft_rewrites_match(tmp_path: Path):
    model = write_tiny_model("mixtral", tmp_path / "mixtral")
    keys = {
        **BASE,
        "base_model": model,
        "lora_target_linear": False,
        "lora_target_modules": ["q_proj", "w1", "w2", "w3"],
    }
    notes = axmem_trace.estimate(keys, hub="never").notes
    assert not [note for note in notes if "no module is called" in note.text]


@pytest.mark.parametrize("name", ["/models/Taiwan-LLM-7B", "./out/merged", "somebody/never-heard-of-it"])
def test_a_missing_model_may_be_replaced_by_its_base_model(name):
    with pytest.raises(ConfigError) as caught:
        read_recipe({**BASE, "base_model": name}, hub="never")
    assert "--set base_model=" in caught.value.remedy
    recipe = read_recipe({**BASE, "base_model": name}, overrides=["base_model=meta-llama/Llama-2-7b-hf"], hub="never")
    assert recipe.model.base.model_type == "llama"


def test_an_error_of_building_contains_the_refusals(tmp_path: Path):
    model = write_tiny_model("llama", tmp_path / "llama")
    keys = {
        **BASE,
        "base_model": model,
        "lora_target_linear": False,
        "lora_target_modules": ["nosuch"],
        "early_stopping_patience": 1,
    }
    with pytest.raises(ConfigError) as caught:
        axmem_trace.estimate(keys, hub="never")
    assert caught.value.key == "lora_target_modules"
    assert [error.key for error in caught.value.others] == ["early_stopping_patience"]


def test_hub_is_one_of_three(tmp_path: Path):
    with pytest.raises(ConfigError, match="never, fallback and first"):
        axmem_trace.estimate({**BASE, "base_model": "a/b"}, hub="nope")
