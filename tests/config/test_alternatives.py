"""Behaviour of older releases, and alternatives: they are reported with a figure, which is that of a separate run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.report.alternatives import compare_alternatives
from axmem_trace.units import format_bytes

LORA: dict[str, Any] = {
    "micro_batch_size": 1,
    "sequence_len": 64,
    "learning_rate": 1e-4,
    "lora_r": 4,
    "lora_alpha": 8,
    "datasets": [{"path": "d", "type": "alpaca"}],
    "bf16": True,
}
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 4}
ATTENTION = {"lora_target_modules": ["q_proj", "v_proj"]}


def reserved(config: dict[str, Any], **options: Any) -> str:
    return format_bytes(axmem_trace.estimate(config, hub="never", **options).peak.reserved_bytes)


def test_lora_with_4_bit_is_reported_once_with_the_figure_of_qlora(tmp_path: Path):
    model = write_tiny_model("llama", tmp_path / "llama", **WIDE)
    config = {**LORA, **ATTENTION, "base_model": model, "adapter": "lora", "load_in_4bit": True}
    report = axmem_trace.estimate(config, hub="never")
    (note,) = [note for note in report.notes if note.key == "load_in_4bit"]
    assert note.kind == "warning"
    assert "Until 0.12 it was loaded in 4 bit" in note.text
    figure = reserved({**config, "adapter": "qlora"})
    assert f"With `adapter: qlora`: {figure} reserved, where this run has {reserved(config)}" in note.text
    assert not report.refusals


def test_experts_that_transformers_4_quantised(tmp_path: Path):
    model = write_tiny_model("qwen3_moe", tmp_path / "moe", hidden_size=256, moe_intermediate_size=512, num_experts=8)
    config = {**LORA, **ATTENTION, "base_model": model, "adapter": "qlora", "load_in_4bit": True}
    notes = axmem_trace.estimate(config, hub="never").notes
    (note,) = [note for note in notes if "until axolotl 0.13" in note.text]
    figure = reserved({**config, "quantize_moe_experts": True})
    assert f"With `quantize_moe_experts: true`: {figure} reserved" in note.text


def test_a_difference_of_less_than_a_tenth_is_not_reported(tmp_path: Path):
    model = write_tiny_model("qwen3_moe", tmp_path / "moe")
    config = {**LORA, **ATTENTION, "base_model": model, "adapter": "qlora", "load_in_4bit": True}
    assert len(read_recipe(config, hub="never").alternatives) == 1
    assert not [note for note in axmem_trace.estimate(config, hub="never").notes if "until axolotl" in note.text]


def test_too_many_experts_are_reported_without_a_figure():
    config = {**LORA, "base_model": "Qwen/Qwen3-30B-A3B", "adapter": "lora", "lora_target_linear": True}
    recipe = read_recipe(config, hub="never")
    (alternative,) = recipe.alternatives
    assert alternative.recipe is None
    recipe = compare_alternatives(recipe, 1 << 30, lambda other: 0)
    (note,) = [note for note in recipe.notes if "until axolotl 0.13" in note.text]
    assert note.text.endswith("reached by lora_target_linear. `--assume experts_layout=linear` estimates that")


@pytest.mark.parametrize(
    ("base_model", "linear"),
    [
        ("openai/gpt-oss-20b", False),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", False),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", False),
        ("allenai/OLMoE-1B-7B-0924", True),
        ("deepseek-ai/DeepSeek-V2-Lite", True),
        ("zai-org/GLM-4.5-Air", True),
    ],
)
def test_only_experts_that_were_linear_layers_are_reported(base_model: str, linear: bool):
    config = {**LORA, "base_model": base_model, "adapter": "lora", "lora_target_linear": True}
    assert bool(read_recipe(config, hub="never").alternatives) is linear


def test_an_alternative_that_cannot_be_estimated_is_left_out(tmp_path: Path):
    model = write_tiny_model("llama", tmp_path / "llama")
    config = {**LORA, **ATTENTION, "base_model": model, "adapter": "lora", "load_in_4bit": True}
    recipe = read_recipe(config, hub="never")

    def fail(other):
        raise ConfigError("no")

    assert compare_alternatives(recipe, 1 << 30, fail).notes == recipe.notes
    figures = compare_alternatives(recipe, 100 << 20, lambda other: 80 << 20).notes
    assert any(
        "With `adapter: qlora`: 80.0 MiB reserved, where this run has 100.0 MiB" in note.text for note in figures
    )
    assert compare_alternatives(recipe, 100 << 20, lambda other: 91 << 20).notes == recipe.notes


def test_a_setting_that_changes_nothing_has_no_alternative(tmp_path: Path):
    model = write_tiny_model("llama", tmp_path / "llama")
    for keys in (
        {"adapter": "qlora", "load_in_4bit": True},
        {"adapter": "lora"},
        {"adapter": "lora", "load_in_8bit": True},
    ):
        assert read_recipe({**LORA, **ATTENTION, "base_model": model, **keys}, hub="never").alternatives == ()
