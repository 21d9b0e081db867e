"""The dtypes of a quantised base after axolotl's casts and peft's k-bit preparation.

Sources: axolotl 0.19 `loaders/model.py` `_configure_embedding_dtypes`, `_prepare_model_for_quantization`; peft 0.20
`utils/other.py` `prepare_model_for_kbit_training` (every fp16 or bf16 parameter that is not a `Params4bit` is cast to
fp32).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.quantised_models import INT8, LORA, QLORA, build, dtypes_of

KBIT = {"4bit": QLORA, "8bit": INT8}
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.mark.parametrize("bits", KBIT)
def test_norms_and_embeddings_are_cast_back(bits: str, tmp_path: Path):
    built = build(tmp_path, KBIT[bits])
    for ending in ("input_layernorm.weight", "model.norm.weight", "embed_tokens.weight", "lm_head.weight"):
        assert dtypes_of(built, ending) == {"bfloat16"}
    assert dtypes_of(built, "lora_A.default.weight") == {"float32"}


@pytest.mark.parametrize("bits", KBIT)
def test_biases_stay_fp32(bits: str, tmp_path: Path):
    assert dtypes_of(build(tmp_path, KBIT[bits], family="qwen2"), "proj.base_layer.bias") == {"float32"}


@pytest.mark.parametrize("bits", KBIT)
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_routers_and_fused_experts_stay_fp32(family: str, bits: str, tmp_path: Path):
    built = build(tmp_path, KBIT[bits], family=family)
    assert dtypes_of(built, "gate.weight") == {"float32"}
    for ending in EXPERTS:
        assert dtypes_of(built, ending) == {"float32"}


def test_quantised_experts_switch_the_preparation_off(tmp_path: Path):
    built = build(tmp_path, {**QLORA, "quantize_moe_experts": True}, family="mixtral")
    # 4 experts of 1024 x 256 (gate and up) and of 256 x 512 in each layer, half a byte each
    packed = [fact.nbytes for fact in built.facts.tensors if "experts" in fact.name and "original" in fact.name]
    assert sorted(packed) == [262_144, 262_144, 524_288, 524_288]
    assert dtypes_of(built, "gate.weight") == {"float32"}  # axolotl's own cast, which no second cast reverses
    assert dtypes_of(built, "input_layernorm.weight") == {"bfloat16"}


def test_skipping_the_upcast_does_not_change_embeddings(tmp_path: Path):
    assert dtypes_of(build(tmp_path, {**QLORA, "embeddings_skip_upcast": True}), "embed_tokens.weight") == {"bfloat16"}


def test_lora_with_load_in_4bit_is_not_quantised_but_prepared(tmp_path: Path):
    built = build(tmp_path, {**LORA, "load_in_4bit": True})
    assert dtypes_of(built, "down_proj.weight") == {"float32"}
    assert dtypes_of(built, "embed_tokens.weight") == {"bfloat16"}
