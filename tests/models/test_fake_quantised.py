"""Quantisation-aware training by hand: the tensors that torchao's operators keep for backward, for each weight and each
input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import whole_runs
from support.one_layer import run_layer
from torch import nn

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model
from axmem_trace.models.quantisation.fake_quantised import (
    FakeQuantisedEmbedding,
    FakeQuantisedLinear,
    prepare_fake_quantisation,
)
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import BaseModel, FakeQuantisation, Model, Recipe

TOKENS, IN, OUT = 64, 512, 1024
W, X, Y = IN * OUT, TOKENS * IN, TOKENS * OUT
ROWS = 6 * 4 * OUT
"""The size of scales and similar tensors: at most this many bytes, if there is one for each row."""


def kept(**asked: Any) -> int:
    """Bytes that one layer's graph keeps in addition to its input, its weight and its output."""
    layer = nn.Sequential(nn.Linear(IN, OUT, bias=False, device="meta", dtype=torch.bfloat16))
    recipe = Recipe(
        name="x",
        model=Model(base=BaseModel(name="x", config={}, source="")),
        fake_quantisation=FakeQuantisation(**asked),
    )
    prepare_fake_quantisation(layer, recipe, Notes())
    return run_layer(layer, TOKENS, IN, OUT).kept - 2 * Y


def test_float8_weights_and_inputs():
    # For each tensor: its absolute value (amax); in fp32 the tensor itself (divided by a scale that has a gradient),
    # the quotient (clamped) and the bits again (multiplied by the scale); the result in bf16 (the product).
    assert 0 <= kept(weight="float8", activation="float8") - (2 + 3 * 4 + 2) * (W + X) <= 2 * ROWS


def test_int4_weights_for_bf16_inputs():
    # fp32: the weight (amax, amin), minus its minimum (divided), rounded (clamped), minus 8 (multiplied); the result.
    groups = 4 * W // 32
    weights = kept(weight="int4", activation="int8", group_size=32) - (4 * 4 + 2) * W
    # A token's input times its scale, rounded, plus its zero point: fp32 (clamped); this minus the zero point in bf16
    # (multiplied by a scale without gradient: not kept); the result in bf16.
    assert 0 <= weights - (4 + 2) * X <= 6 * groups + ROWS


def test_int4_weights_pass_through_float8():
    groups = 2 * W // 32
    # The same as float8 weights, then the rounded weight's absolute value (amax), itself (times a scale with gradient),
    # its sum with the zero point (clamped), its difference (multiplied): bf16; the result in bf16.
    first = (2 + 3 * 4) * W
    assert 0 <= kept(weight="int4", group_size=32) - first - (2 + 2 + 2 + 2 + 2) * W <= 8 * groups + ROWS


# --- in a configuration -----------------------------------------------------------------------------------------------


def make_config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    common = {"sequence_len": 64, "attn_implementation": "flash_attention_2"}
    return whole_runs.make_config(tmp_path, **{**common, **keys})


FLOAT8 = {"qat": {"weight_dtype": "fp8", "activation_dtype": "fp8"}}
INT4 = {"qat": {"weight_dtype": "int4", "group_size": 16}}


def activations(tmp_path: Path, **keys: Any) -> int:
    report = axmem_trace.estimate(make_config(tmp_path, **keys), hub="never")
    return report.buckets.activations


def test_every_linear_layer_is_replaced_and_embeddings_on_request(tmp_path):
    built = build_model(read_recipe(make_config(tmp_path, **INT4), hub="never"))
    assert sum(isinstance(each, FakeQuantisedLinear) for each in built.module.modules()) == 2 * 7 + 1
    assert not [each for each in built.module.modules() if isinstance(each, FakeQuantisedEmbedding)]
    keys = {"qat": {**INT4["qat"], "quantize_embedding": True}}
    built = build_model(read_recipe(make_config(tmp_path, **keys), hub="never"))
    assert sum(isinstance(each, FakeQuantisedEmbedding) for each in built.module.modules()) == 1


def test_a_pair_that_differs_only_in_qat_keeps_more_activations(tmp_path):
    # All 15 weights (12,288 + 2 x 7,680 elements without embeddings) and their inputs: at least 14 bytes for each
    # weight.
    weights = 96 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    more = activations(tmp_path, **FLOAT8) - activations(tmp_path)
    assert more >= 14 * weights
    assert activations(tmp_path, **INT4) > activations(tmp_path)


def test_checkpointing_keeps_them_for_only_one_layer(tmp_path):
    keys = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    plain = activations(tmp_path, **keys)
    assert activations(tmp_path, **FLOAT8, **keys) - plain < activations(tmp_path, **FLOAT8) - activations(tmp_path)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({}, "no fake quantisation of int8 weights"),
        ({"weight_dtype": "fp8"}, "float8 weights with unquantised"),
        ({"weight_dtype": "int4", "activation_dtype": "int4"}, "int4 weights with int4"),
        ({"weight_dtype": "fp8", "activation_dtype": "fp8", "quantize_embedding": True}, "embeddings have no"),
    ],
)
def test_pairs_that_torchao_does_not_support_are_refused(tmp_path, block, words):
    with pytest.raises(ConfigError, match=words):
        read_recipe(make_config(tmp_path, qat=block), hub="never")


def test_a_group_size_that_divides_no_width_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a multiple of the group size"):
        build_model(read_recipe(make_config(tmp_path, qat={"weight_dtype": "int4", "group_size": 20}), hub="never"))


@pytest.mark.parametrize(
    ("name", "kind"), [("nvfp4", "refused"), ("mxfp4", "not_modelled"), ("ternary", "not_modelled")]
)
def test_other_formats_are_reported(tmp_path, name, kind):
    recipe = read_recipe(make_config(tmp_path, qat={"weight_dtype": name}), hub="never")
    assert recipe.fake_quantisation is None
    assert [note.kind for note in recipe.notes if note.key == "qat"] == [kind]
