"""Masked-diffusion training by hand: the mask, and the copies of the logits that its loss makes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

ROWS, TOKENS, VOCABULARY = 2, 64, 96
LOGITS = ROWS * TOKENS * VOCABULARY * 4
DIFFUSION = {"plugins": ["axolotl.integrations.diffusion.DiffusionPlugin"]}


def make_config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": ROWS,
        "sequence_len": TOKENS,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "attn_implementation": "sdpa",
        **keys,
    }


def record(tmp_path: Path, **keys: Any) -> Ledger:
    recipe = read_recipe(make_config(tmp_path, **keys), hub="never")
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module)).ledger


def allocated(ledger: Ledger, phase: str) -> Counter[tuple[str, int]]:
    found = [each for each in ledger.on_gpu if (each.phase, each.step) == (phase, 1) and not each.role]
    return Counter((each.op, each.nbytes) for each in found)


def test_logits_are_shifted_and_selected_in_fp32(tmp_path):
    forward = allocated(record(tmp_path, **DIFFUSION), "forward")
    # accelerate's fp32 copy, the shifted copy, the copy of the masked tokens (all tokens), and the log-softmax that is
    # kept.
    for op in ("aten._to_copy.default", "aten.cat.default", "aten.index.Tensor", "aten._log_softmax.default"):
        assert forward[(op, LOGITS)] == 1, op


def test_only_the_log_softmax_is_kept_for_backward(tmp_path):
    ledger = record(tmp_path, **DIFFUSION)
    kept = [each for each in ledger.on_gpu if each.kept and each.step == 1 and each.nbytes == LOGITS]
    assert [each.op for each in kept] == ["aten._log_softmax.default"]


def test_the_gradient_is_written_into_a_full_matrix_of_zeros(tmp_path):
    backward = allocated(record(tmp_path, **DIFFUSION), "backward")
    full = {op: number for (op, nbytes), number in backward.items() if nbytes == LOGITS}
    # The gradients of nll_loss and of log-softmax are made; then the gradients of the selected tokens are written into
    # zeros.
    assert full["aten._log_softmax_backward_data.default"] == 1
    assert sum(number for op, number in full.items() if "zeros" in op or "new_zeros" in op) >= 1


def test_every_token_attends_to_every_other(tmp_path):
    forward = allocated(record(tmp_path, **DIFFUSION), "forward")
    square = ROWS * TOKENS * TOKENS
    # `queries == keys`, and both conditions together.
    assert forward[("aten.eq.Tensor", square)] == 1
    assert forward[("aten.bitwise_and.Tensor", square)] == 1


def test_a_pair_that_differs_only_in_the_plugin_needs_more(tmp_path):
    plain, diffusion = (axmem_trace.estimate(make_config(tmp_path, **keys), hub="never") for keys in ({}, DIFFUSION))
    assert diffusion.phases["step_2"].allocated_bytes > plain.phases["step_2"].allocated_bytes
    assert [note.kind for note in diffusion.notes if "all tokens are masked" in note.text] == ["assumed"]


def test_fused_losses_have_no_effect(tmp_path):
    liger = {
        "plugins": [*DIFFUSION["plugins"], "axolotl.integrations.liger.LigerPlugin"],
        "liger_fused_linear_cross_entropy": True,
    }
    assert read_recipe(make_config(tmp_path, **liger), hub="never").loss.path == "diffusion"


def test_flash_attention_cannot_unpad_with_this_mask(tmp_path):
    with pytest.raises(ConfigError, match="to remove the padding"):
        read_recipe(make_config(tmp_path, **DIFFUSION, attn_implementation="flash_attention_2"), hub="never")
