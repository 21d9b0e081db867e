"""What a built model shows that its author may not expect is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import write_tiny_model

from axmem_trace.models import build_model
from axmem_trace.notes import Note
from axmem_trace.recipe import read_recipe

LORA = {"lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}


def warnings(tmp_path: Path, family: str, **keys: Any) -> dict[str, Note]:
    config = {
        "base_model": write_tiny_model(family, tmp_path / family),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **LORA,
        **keys,
    }
    notes = build_model(read_recipe(config, hub="never")).notes
    return {note.key: note for note in notes if note.kind == "warning"}


def test_a_models_own_linears_stay_unquantised(tmp_path):
    note = warnings(tmp_path, "falcon", adapter="qlora", load_in_4bit=True)["load_in_4bit"]
    assert "8 of class FalconLinear" in note.text
    # Two layers: query_key_value (32 + 2 x 8) x 32, dense 32 x 32, mlp 128 x 32 twice; fp32 after k-bit preparation.
    assert note.bytes == 2 * (48 * 32 + 32 * 32 + 2 * 128 * 32) * 4


def test_plain_linears_are_no_trap(tmp_path):
    assert not warnings(tmp_path, "llama", adapter="qlora", load_in_4bit=True)


def test_four_bits_without_qlora_are_fp32(tmp_path):
    note = warnings(tmp_path, "llama", adapter="lora", load_in_4bit=True)["load_in_4bit"]
    assert "nothing is quantised" in note.text
    # The linears of both layers; embeddings and norms are cast back.
    assert note.bytes == 2 * (2 * 1024 + 2 * 512 + 3 * 1536) * 4


def test_fused_experts_are_reached_by_neither(tmp_path):
    found = warnings(tmp_path, "qwen3_moe", adapter="qlora", load_in_4bit=True)
    # Two layers of four experts: gate_up 48 x 32 and down 32 x 24; fp32 after k-bit preparation.
    assert found["quantize_moe_experts"].bytes == 2 * 4 * (48 * 32 + 32 * 24) * 4
    assert "LoRA does not reach the fused experts" in found["lora_target_linear"].text
    names = {"lora_target_linear": None, "lora_target_modules": ["q_proj"], "quantize_moe_experts": True}
    found = warnings(tmp_path, "qwen3_moe", adapter="qlora", load_in_4bit=True, **names)
    assert "quantize_moe_experts" not in found


def test_target_parameters_reach_them(tmp_path):
    found = warnings(tmp_path, "qwen3_moe", adapter="lora", lora_target_parameters=["mlp.experts.gate_up_proj"])
    assert "lora_target_linear" not in found
