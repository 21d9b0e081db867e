"""Bytes of quantised weights, compared with sums by hand.

The model: hidden 256, intermediate 512, 4 heads and 2 key-value heads of 64, vocabulary 1024, two layers. Linear
weights of a layer: q and o 256*256 = 65,536 each; k and v 128*256 = 32,768 each; gate, up and down 512*256 = 131,072
each: 589,824, so 1,179,648 in both layers, in 14 matrices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised_models import INT8, LORA, QLORA, build, dtypes_of, weight_bytes

from axmem_trace.errors import ConfigError

LINEAR = 1_179_648
REST = 1_051_392
"""In bf16: embedding and head 2 * 1024*256*2 = 1,048,576; five norms 5*256*2 = 2,560. Rotary frequencies, two copies
of 32 in fp32: 256."""
NF4 = 589_824 + 18_432 + 288 + 56 + 896 + 14_336
"""Half a byte for each weight; one byte of absmax for 64 weights; an fp32 absmax for 256 of those (in blocks: q and o
4, k and v 2, the MLP's 8 each: 36 in a layer, 72 * 4 bytes); 14 fp32 offsets; 14 tables of 16 and of 256 fp32
values."""


def test_unquantised(tmp_path: Path):
    assert weight_bytes(build(tmp_path, {})) == REST + LINEAR * 2 + 1_051_136  # embedding, head and norms are fp32


def test_nf4_with_double_quantisation(tmp_path: Path):
    assert weight_bytes(build(tmp_path, QLORA)) == REST + NF4


@pytest.mark.parametrize("storage", ["uint8", "float16", "float32"])
def test_storage_dtype_changes_no_byte(storage: str, tmp_path: Path):
    built = build(tmp_path, {**QLORA, "bnb_config_kwargs": {"bnb_4bit_quant_storage": storage}})
    assert weight_bytes(built) == REST + NF4
    assert dtypes_of(built, "down_proj.weight") == {storage}


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_without_double_quantisation(quant_type: str, tmp_path: Path):
    kwargs = {"bnb_4bit_use_double_quant": False, "bnb_4bit_quant_type": quant_type}
    # absmax in fp32 per 64 weights: 18,432 * 4 = 73,728; 14 tables of 16 fp32 values
    assert weight_bytes(build(tmp_path, {**QLORA, "bnb_config_kwargs": kwargs})) == REST + 589_824 + 73_728 + 896


def test_int8(tmp_path: Path):
    # one byte a weight, one fp32 scale per output row: 256+128+128+256+512+512+256 = 2048 rows a layer
    assert weight_bytes(build(tmp_path, INT8)) == REST + LINEAR + 2 * 2048 * 4


def test_a_skip_list_replaces_the_default_and_quantises_the_head(tmp_path: Path):
    # transformers `quantizers/base.py` `get_modules_to_not_convert`: the head is skipped only if there is no list
    built = build(tmp_path, {**QLORA, "bnb_config_kwargs": {"llm_int8_skip_modules": ["down_proj"]}})
    # down: 131,072 * 4, because k-bit preparation casts unpacked weights to fp32, instead of 65,536 + 2048 + 8*4 + 4 +
    # 64 + 1024 = 68,708 in each layer
    assert dtypes_of(built, "down_proj.weight") == {"float32"}
    # head: 262,144/2 + 4096 + 16*4 + 4 + 64 + 1024 = 136,324 instead of 524,288
    assert weight_bytes(built) == REST + NF4 + 2 * (524_288 - 68_708) + 136_324 - 524_288


def test_a_tied_head_is_neither_quantised_nor_counted_twice(tmp_path: Path):
    built = build(tmp_path, QLORA, tie_word_embeddings=True)
    assert weight_bytes(built) == REST - 524_288 + NF4


def test_a_tied_head_that_is_not_in_a_skip_list_makes_the_run_fail(tmp_path: Path):
    """A real `from_pretrained` on a CPU ties the embedding's unpacked weight to `Linear4bit`, and its forward raises an
    AssertionError."""
    keys = {**QLORA, "bnb_config_kwargs": {"llm_int8_skip_modules": ["down_proj"]}}
    with pytest.raises(ConfigError, match=r"llm_int8_skip_modules: \[lm_head") as caught:
        build(tmp_path, keys, tie_word_embeddings=True)
    assert caught.value.key == "bnb_config_kwargs"
    keys["bnb_config_kwargs"] = {"llm_int8_skip_modules": ["down_proj", "lm_head"]}
    built = build(tmp_path, keys, tie_word_embeddings=True)
    assert weight_bytes(built) == REST - 524_288 + NF4 + 2 * (524_288 - 68_708)  # both down projections in fp32


def _own(**quantization_config: Any) -> dict[str, Any]:
    return {"quantization_config": quantization_config}


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_a_checkpoint_in_nf4_has_its_own_configuration(storage: str, tmp_path: Path):
    own = _own(
        quant_method="bitsandbytes",
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_quant_storage=storage,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16",
    )
    built = build(tmp_path, LORA, **own)
    assert weight_bytes(built) == REST + NF4
    assert dtypes_of(built, "down_proj.weight") == {storage}


GPTQ = {
    # bits, group size: words of 32 bits for the weights, as many per 1/bits for the zeros of each group, fp16 scales,
    # and an int32 group index per input feature (6*256 + 512 = 2048 a layer: 8192 bytes).
    # A layer has 2 groups of 128 in 256 inputs for 1792 outputs, 4 in 512 inputs for 256: 4608 scales.
    (4, 128): 589_824 + 2 * (4608 // 2 + 4608 * 2 + 8192),
    (4, 64): 589_824 + 2 * (9216 // 2 + 9216 * 2 + 8192),
    (4, -1): 589_824 + 2 * (2048 // 2 + 2048 * 2 + 8192),
    (8, 128): 1_179_648 + 2 * (4608 + 4608 * 2 + 8192),
    (3, 128): 442_368 + 2 * (4608 * 3 // 8 + 4608 * 2 + 8192),
    (2, 128): 294_912 + 2 * (4608 // 4 + 4608 * 2 + 8192),
}


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), GPTQ)
def test_gptq(bits: int, group_size: int, act_order: bool, tmp_path: Path):
    own = _own(quant_method="gptq", bits=bits, group_size=group_size, desc_act=act_order)
    assert weight_bytes(build(tmp_path, {**LORA, "gptq": True}, **own)) == REST + GPTQ[bits, group_size]


def test_awq_has_no_group_index(tmp_path: Path):
    own = _own(quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm")
    built = build(tmp_path, LORA, **own)
    assert weight_bytes(built) == REST + GPTQ[4, 128] - 2 * 8192


def test_a_number_of_bits_that_no_library_packs_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="format with 5 bits"):
        build(tmp_path, {**LORA, "gptq": True}, **_own(quant_method="gptq", bits=5, group_size=128))


@pytest.mark.parametrize(
    ("gpu", "kind", "why"), [("A100", "assumed", "below 8.9"), ("H100", "refused", "refuses to train")]
)
def test_fp8_is_dequantised_by_an_old_card_and_refused_by_transformers_on_a_new_one(
    gpu: str, kind: str, why: str, tmp_path: Path
):
    own = _own(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128])
    built = build(tmp_path, LORA, gpu=gpu, **own)
    assert weight_bytes(built) == REST + LINEAR * 2
    (note,) = [note for note in built.notes if note.key == "base_model"]
    assert note.kind == kind
    assert why in note.text


def test_mxfp4_is_dequantised_for_training(tmp_path: Path):
    built = build(tmp_path, LORA, **_own(quant_method="mxfp4"))
    assert weight_bytes(built) == REST + LINEAR * 2
    assert [note.kind for note in built.notes if note.key == "base_model"] == ["refused"]


@pytest.mark.parametrize("method", ["compressed-tensors", "modelopt", "hqq", "aqlm"])
def test_other_methods_are_counted_unquantised_and_reported(method: str, tmp_path: Path):
    built = build(tmp_path, LORA, **_own(quant_method=method))
    assert weight_bytes(built) == REST + LINEAR * 2
    assert [note.kind for note in built.notes if note.key == "base_model"] == ["not_modelled"]


def test_a_dequantised_weight_has_the_dtype_in_which_it_was_loaded(tmp_path: Path):
    modules = dict(build(tmp_path, QLORA).module.named_modules())
    states = {each.quant_state.dtype for each in modules.values() if getattr(each, "quant_state", None) is not None}
    assert states == {torch.bfloat16}
