"""Properties of a built model that the user may not expect are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model
from support.whole_runs import make_recipe

from axmem_trace import estimate
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model
from axmem_trace.notes import Note

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


def test_plain_linear_layers_have_no_warning(tmp_path):
    assert not warnings(tmp_path, "llama", adapter="qlora", load_in_4bit=True)


def test_four_bits_without_qlora_are_fp32(tmp_path):
    """The reader of the configuration has reported it, with the figure of `adapter: qlora`, so it is reported once."""
    built = build_model(make_recipe(tmp_path, **LORA, adapter="lora", load_in_4bit=True))
    assert not [note for note in built.notes if note.key == "load_in_4bit"]
    # The linear layers of both decoder layers; embeddings and norms are cast back.
    linears = [fact for fact in built.facts.tensors if fact.dtype == "float32" and fact.role == "weight"]
    assert sum(fact.nbytes for fact in linears if fact.kind == "parameter") == 2 * (2 * 1024 + 2 * 512 + 3 * 1536) * 4


def test_fused_experts_are_neither_quantised_nor_adapted(tmp_path):
    from bitsandbytes import functional

    found = warnings(tmp_path, "qwen3_moe", adapter="qlora", load_in_4bit=True)
    # Two layers of four experts: gate_up 48 x 32 and down 32 x 24; fp32 after k-bit preparation.
    assert found["load_in_4bit"].bytes == 2 * 4 * (48 * 32 + 32 * 24) * 4
    assert "`quantize_moe_experts: true` packs them" in found["load_in_4bit"].text
    advice = "`lora_target_parameters: [mlp.experts.down_proj, mlp.experts.gate_up_proj]`"
    assert advice in found["lora_target_linear"].text
    names = {"lora_target_linear": None, "lora_target_modules": ["q_proj"], "quantize_moe_experts": True}
    found = warnings(tmp_path, "qwen3_moe", adapter="qlora", load_in_4bit=True, **names)
    assert "load_in_4bit" not in found
    # no meta tensor is left in bitsandbytes' tables: later real use in the process would fail
    assert not any(table.is_meta for table in functional.name2qmap.values())


def test_target_parameters_reach_them(tmp_path):
    found = warnings(tmp_path, "qwen3_moe", adapter="lora", lora_target_parameters=["mlp.experts.gate_up_proj"])
    assert not {"lora_target_linear", "lora_target_parameters"} & found.keys()


def test_missing_target_parameters_are_reported_with_the_existing_ones(tmp_path):
    asked = ["mlp.experts.gate_up_proj", "experts.w2", "p.experts.down_proj"]
    text = warnings(tmp_path, "qwen3_moe", adapter="lora", lora_target_parameters=asked)["lora_target_parameters"].text
    assert "no parameter is called experts.w2, p.experts.down_proj:" in text
    assert "mlp.experts.down_proj, mlp.experts.gate_up_proj" in text


def test_experts_that_peft_finds_by_their_old_names_are_reported(tmp_path):
    """peft rewrites transformers 4's names of Mixtral's experts into the fused parameters."""
    names = {"lora_target_linear": None, "lora_target_modules": ["q_proj", "w1", "w2", "w3"]}
    text = warnings(tmp_path, "mixtral", adapter="lora", **names)["lora_target_modules"].text
    assert "the fused experts too (mlp.experts.down_proj, mlp.experts.gate_up_proj;" in text


def test_a_model_without_experts_has_no_such_warning(tmp_path):
    assert not warnings(tmp_path, "llama", adapter="lora")


def test_a_note_of_the_model_has_its_keys_line(tmp_path):
    path = tmp_path / "c.yml"
    base = write_tiny_model("qwen3_moe", tmp_path / "model")
    lines = [
        f"base_model: {base}",
        "micro_batch_size: 1",
        "sequence_len: 16",
        "learning_rate: 0.1",
        "adapter: lora",
        "lora_r: 4",
        "lora_target_linear: true",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    report = estimate(path, hub="never")
    assert [note.line for note in report.notes if note.key == "lora_target_linear"] == [7]


@pytest.mark.parametrize(
    ("keys", "key", "line", "words"),
    [
        (["lora_target_modules: [nowhere]"], "lora_target_modules", 7, "k_proj"),
        (["lora_target_linear: true", "gradient_checkpointing: true"], "gradient_checkpointing", 8, "can't checkpoint"),
    ],
)
@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_error_of_the_model_has_its_keys_line(tmp_path, monkeypatch, adapter, keys, key, line, words):
    from transformers import Qwen3MoeForCausalLM

    monkeypatch.setattr(Qwen3MoeForCausalLM, "supports_gradient_checkpointing", False)
    path = tmp_path / "c.yml"
    base = write_tiny_model("qwen3_moe", tmp_path / "model")
    lines = [
        f"base_model: {base}",
        "micro_batch_size: 1",
        "learning_rate: 0.1",
        f"adapter: {adapter}",
        "lora_r: 4",
        f"load_in_4bit: {adapter == 'qlora'}",
        *keys,
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        estimate(path, hub="never")
    assert (caught.value.file, caught.value.line, caught.value.key) == (str(path), line, key)


def test_layers_that_peft_refuses_are_left_out_of_the_advice(tmp_path):
    """peft `_check_lora_target_modules_mamba`: `out_proj` of these types."""
    config = {
        "model_type": "falcon_mamba",
        "architectures": ["FalconMambaForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "state_size": 4,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    keys = {"base_model": str(tmp_path), "micro_batch_size": 1, "learning_rate": 0.1, "adapter": "lora", **LORA}
    with pytest.raises(ConfigError, match=r"lora_target_modules: \[dt_proj, in_proj, x_proj\]") as caught:
        estimate(keys, hub="never")
    assert (caught.value.key, caught.value.value) == ("lora_target_linear", True)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"adapter": "lora"},
            r"lora_target_modules: \[down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj\]",
        ),
        (
            {"adapter": "lora", "load_in_8bit": True, "lora_target_linear": None, "lora_target_modules": ["q_proj"]},
            "train without load_in_8bit",
        ),
    ],
)
def test_a_token_classifiers_head_trains_in_full(tmp_path, keys, words):
    """The head has a bias, and is quantised: transformers' `get_keys_to_not_convert` excludes only the last
    *weight*."""
    base = write_tiny_model("llama", tmp_path)
    config = {"base_model": base, "micro_batch_size": 1, "learning_rate": 0.1, "process_reward_model": True, **LORA}
    with pytest.raises(ConfigError, match=words):
        estimate({**config, **keys}, hub="never")


def test_not_every_class_with_linear_in_its_name_is_a_target(tmp_path):
    """axolotl treats OLMo-Hybrid's `...LinearAttentionDecoderLayer` as a target, because of its class name."""
    layers = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    config = {
        "model_type": "olmo_hybrid",
        "architectures": ["OlmoHybridForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "layer_types": layers,
        "pad_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    keys = {"base_model": str(tmp_path), "micro_batch_size": 1, "learning_rate": 0.1, "adapter": "lora", **LORA}
    with pytest.raises(ConfigError, match=r"modules: \[a_proj, b_proj, down_proj, g_proj, gate_proj") as caught:
        estimate(keys, hub="never")
    assert caught.value.key == "lora_target_linear"


GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 64, "n_positions": 128}
OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize("shape", [GPT2, OPT], ids=["gpt2", "opt"])
@pytest.mark.parametrize(("tokens", "reported"), [(128, False), (136, True)])
def test_rows_longer_than_learned_positions(tmp_path, shape, tokens, reported):
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = {
        "base_model": str(tmp_path),
        "sequence_len": tokens,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    notes = build_model(read_recipe(config, hub="never")).notes
    assert any("128 learned positions" in note.text and note.key == "sequence_len" for note in notes) is reported
