"""flash-attn's cross-entropy by hand, and a pair of configurations that differ only in its key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

ROWS, TOKENS, VOCABULARY = 2, 64, 96
LOGITS = ROWS * TOKENS * VOCABULARY * 4


def read(tmp_path: Path, family: str = "llama", **keys: Any) -> Any:
    directory = tmp_path / f"tiny-{family}"
    config = {
        "base_model": write_tiny_model(family, directory),
        "micro_batch_size": ROWS,
        "sequence_len": TOKENS,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return read_recipe(config, hub="never")


def record(tmp_path: Path, **keys: Any) -> Ledger:
    recipe = read(tmp_path, **keys)
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module)).ledger


def of_logits(ledger: Ledger, phase: str) -> Counter[str]:
    found = [each for each in ledger.on_gpu if (each.phase, each.step, each.nbytes) == (phase, 1, LOGITS)]
    return Counter(each.op for each in found)


def test_the_logits_are_kept_instead_of_the_softmax(tmp_path):
    plain, flash = record(tmp_path), record(tmp_path, flash_attn_cross_entropy=True)
    # both make transformers' and accelerate's fp32 copies of the logits; only one makes the log-softmax.
    assert of_logits(plain, "forward") - of_logits(flash, "forward") == Counter({"aten._log_softmax.default": 1})
    kept = [each for each in flash.on_gpu if each.kept and each.step == 1 and each.nbytes == LOGITS]
    assert [each.op for each in kept] == ["aten._to_copy.default"]


def test_backward_makes_one_matrix_instead_of_two(tmp_path):
    plain, flash = record(tmp_path), record(tmp_path, flash_attn_cross_entropy=True)
    assert sum(of_logits(plain, "backward").values()) - sum(of_logits(flash, "backward").values()) == 1
    assert of_logits(flash, "backward")["aten.empty_like.default"] == 1


def test_the_peak_is_a_matrix_of_logits_lower(tmp_path):
    wide = {"overrides_of_model_config": {"vocab_size": 65_536}}
    plain, flash = (
        record(tmp_path, **wide, **keys).peak(phase="backward", step=1).allocated_bytes
        for keys in ({}, {"flash_attn_cross_entropy": True})
    )
    # 12 and 8 bytes for each logit: the log-softmax, its gradient and that of the loss; or the logits and their
    # gradient.
    logits = ROWS * TOKENS * 65_536 * 4
    assert abs((plain - flash) - logits) < logits // 100


def test_other_models_are_not_changed(tmp_path):
    recipe = read(tmp_path, "mistral", flash_attn_cross_entropy=True)
    assert recipe.loss.cross_entropy == "torch"
    found = [note.kind for note in recipe.notes if note.key == "flash_attn_cross_entropy"]
    assert found == ["ignored"]
    recipe = read(tmp_path, "mistral", flash_attn_cross_entropy=True, is_llama_derived_model=True)
    assert recipe.loss.cross_entropy == "flash"
