"""1.58-bit layers by hand: a copy of the weight and of the input are kept for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.one_layer import run_layer
from support.tiny_models import write_tiny_model
from torch import nn

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.models import build_model
from axmem_trace.models.quantisation.onebit import BitNetLinear

TOKENS, IN, OUT = 64, 512, 1024
X, W, Y = 2 * TOKENS * IN, 2 * IN * OUT, 2 * TOKENS * OUT


def test_a_layer_keeps_its_quantised_weight_and_input():
    layer = nn.Linear(IN, OUT, bias=False, device="meta", dtype=torch.bfloat16)
    layer.__class__ = BitNetLinear
    run = run_layer(layer, TOKENS, IN, OUT)
    assert run.kept == X + W + Y
    # At the peak, when the weight's sum is made: the input's sum, the quantised weight minus the weight, and the sum.
    sums = [each for each in run.ledger.allocations if each.op == "aten.add.Tensor" and each.nbytes == W]
    assert run.ledger.allocated_at(sums[0].allocated_tick) == X + 2 * W


def make_config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "sequence_len": TOKENS,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "attn_implementation": "flash_attention_2",
        **keys,
    }


def test_all_linear_layers_except_the_head_are_replaced(tmp_path):
    built = build_model(read_recipe(make_config(tmp_path, use_onebitllms=True), hub="never"))
    names = [name for name, module in built.module.named_modules() if isinstance(module, BitNetLinear)]
    assert len(names) == 2 * 7
    assert "lm_head" not in names


def test_a_pair_that_differs_only_in_the_key(tmp_path):
    plain, onebit = (
        axmem_trace.estimate(make_config(tmp_path, **keys), hub="never") for keys in ({}, {"use_onebitllms": True})
    )
    assert onebit.resident == plain.resident, "weights stay what they are"
    # The weights of 14 layers, and their inputs: q, k and v each have their own, gate and up too.
    weights = 2 * 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert onebit.buckets.activations - plain.buckets.activations >= weights
    assert [note.kind for note in onebit.notes if note.key == "use_onebitllms"] == ["ruled"]
