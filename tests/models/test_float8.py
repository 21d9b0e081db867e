"""float8 training by hand: the casts of the products, and the tensors that the graph keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import whole_runs
from support.one_layer import LayerRun, run_layer
from torch import nn

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model
from axmem_trace.models.quantisation.float8 import Float8Linear

TOKENS, IN, OUT = 256, 512, 1536
X, W, Y = TOKENS * IN, IN * OUT, TOKENS * OUT
SMALL = 8 * 512
"""Scales, of a few bytes each."""


def run(recipe: str, *, backward: bool) -> LayerRun:
    """One float8 layer over bf16 weights."""
    layer = nn.Linear(IN, OUT, bias=False, device="meta", dtype=torch.bfloat16)
    layer.__class__ = Float8Linear
    layer.float8_recipe = recipe
    return run_layer(layer, TOKENS, IN, OUT, backward=backward)


def test_forward_keeps_only_its_output():
    assert run("tensorwise", backward=False).kept == 2 * Y, "the input and the weight were there before"


def test_the_peak_of_forward_is_the_cast_of_the_weight():
    ledger = run("tensorwise", backward=False).ledger
    # The input's bits; the weight in fp32 times its scale, this clamped, and the weight's bits.
    expected = X + 2 * 4 * W + W
    bits = next(each for each in ledger.allocations if each.op == "aten._to_copy.default" and each.nbytes == W)
    assert 0 <= ledger.allocated_at(bits.allocated_tick) - expected <= SMALL


def test_backward_by_hand():
    found = run("tensorwise", backward=True)
    ledger, workspace = found.ledger, found.workspace
    # When the weight's gradient is computed: bf16 gradients of output, input and weight, and the output itself (the
    # test keeps it); bits of the output's gradient (twice), of the weight and of the input; transposed copies of the
    # output's gradient and of the input. The transposed copy of the first product is freed already.
    expected = 2 * 2 * Y + 2 * X + 2 * W + 2 * Y + W + X + Y + X
    last = max(
        (each for each in ledger.allocations if each.op == "aten._scaled_mm.default"),
        key=lambda each: each.allocated_tick,
    )
    assert last.nbytes == 2 * W
    assert 0 <= ledger.allocated_at(last.allocated_tick) - expected - workspace <= 2 * SMALL


def test_row_scales_are_applied_afterwards_with_a_full_matrix():
    ledger = run("rowwise", backward=True).ledger
    full = [
        each.nbytes for each in ledger.allocations if each.op == "aten.mul.Tensor" and each.nbytes in (4 * X, 4 * W)
    ]
    # Casts: the input and the weight, twice each. Scales: those of the gradients of input and weight, as full fp32
    # matrices.
    assert sorted(full) == sorted([4 * X, 4 * W] * 2 + [4 * X, 4 * W])


def test_the_weights_gradient_may_stay_in_high_precision():
    products = {}
    for recipe in ("rowwise", "rowwise_with_gw_hp"):
        ledger = run(recipe, backward=True).ledger
        products[recipe] = [each.op for each in ledger.allocations if each.op.endswith("mm.default")]
    assert products["rowwise"].count("aten._scaled_mm.default") == 3
    assert products["rowwise_with_gw_hp"].count("aten._scaled_mm.default") == 2
    assert products["rowwise_with_gw_hp"].count("aten.mm.default") == 1


# --- in a configuration -----------------------------------------------------------------------------------------------


def make_config(tmp_path: Path, family: str = "llama", **keys: Any) -> dict[str, Any]:
    common = {"sequence_len": 64, "attn_implementation": "flash_attention_2"}
    return whole_runs.make_config(tmp_path, family, **{**common, **keys})


def converted(tmp_path: Path, family: str = "llama", **keys: Any) -> set[str]:
    built = build_model(read_recipe(make_config(tmp_path, family, fp8=True, **keys), hub="never"))
    return {
        name.removeprefix("base_model.model.model.").removeprefix("model.")
        for name, module in built.module.named_modules()
        if isinstance(module, Float8Linear)
    }


def test_all_layers_except_the_first_and_the_last_are_replaced(tmp_path):
    names = converted(tmp_path)
    assert len(names) == 2 * 7 - 1
    assert "layers.0.self_attn.q_proj" not in names
    assert not [name for name in names if "lm_head" in name]


def test_adapters_with_a_rank_divisible_by_16_are_replaced_too(tmp_path):
    lora = {"adapter": "lora", "lora_alpha": 8, "lora_target_modules": ["v_proj"]}
    assert not [name for name in converted(tmp_path, lora_r=8, **lora) if "lora_" in name]
    assert len([name for name in converted(tmp_path, lora_r=16, **lora) if "lora_" in name]) == 2 * 2


def test_the_same_is_kept_and_the_peak_is_higher(tmp_path):
    reports = [axmem_trace.estimate(make_config(tmp_path, **keys), hub="never") for keys in ({}, {"fp8": True})]
    plain, float8 = reports
    assert float8.resident == plain.resident
    assert float8.peak.allocated_bytes >= plain.peak.allocated_bytes
    assert [note.kind for note in float8.notes if note.key == "fp8"] == ["ruled"]


def test_packed_weights_can_not_be_multiplied_in_float8(tmp_path):
    keys = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 8, "lora_target_linear": True}
    with pytest.raises(ConfigError, match="packed"):
        converted(tmp_path, **keys)
