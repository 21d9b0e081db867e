"""Selective checkpointing: attention's outputs are saved, and not computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY

from axmem_trace.models import build_model
from axmem_trace.recipe import read_recipe
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.record import Recording, record_run

ROWS, TOKENS, HEADS, WIDTH, LAYERS = 1, 64, 4, 32, 2
OUTPUT = ROWS * TOKENS * WIDTH * 2
LOGSUMEXP = ROWS * HEADS * TOKENS * 4


def record(tmp_path: Path, family: str = "llama", **keys: Any) -> Recording:
    tmp_path.joinpath("config.json").write_text(json.dumps(TINY[family]))
    config = {
        "base_model": str(tmp_path),
        "sequence_len": TOKENS,
        "micro_batch_size": ROWS,
        "learning_rate": 1e-4,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module))


def kept_bytes(recording: Recording) -> int:
    ledger = recording.ledger
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward" and mark.step == 1)
    return ledger.by_bucket(start)["activations"]


def runs(recording: Recording, operator: str) -> tuple[int, int]:
    """How many outputs the operator brought forth in the first step: in forward, and in recomputation."""
    found = [each for each in recording.ledger.on_gpu if operator in each.op and "backward" not in each.op]
    found = [each for each in found if each.step == 1 and each.nbytes == OUTPUT]
    return sum(not each.recomputed for each in found), sum(each.recomputed for each in found)


@pytest.mark.parametrize(
    ("kernel", "operator", "rng"),
    [
        ("flash_attention_2", "flash_attn_func", 512),  # an RNG state of two int64, a block of its own
        ("sdpa", "aten._scaled_dot_product_flash_attention", 2 * 512),  # seed and offset
    ],
)
def test_attention_is_saved(tmp_path, kernel, operator, rng):
    plain = record(tmp_path, attn_implementation=kernel)
    selective = record(tmp_path, attn_implementation=kernel, selective_checkpointing=True)
    assert runs(plain, operator) == (LAYERS, LAYERS)
    assert runs(selective, operator) == (LAYERS, 0)
    assert kept_bytes(selective) - kept_bytes(plain) == LAYERS * (OUTPUT + LOGSUMEXP + rng)


def test_sliding_windows_are_computed_again(tmp_path):
    keys = {"attn_implementation": "flash_attention_2", "selective_checkpointing": True}
    assert runs(record(tmp_path, "mistral", **keys), "flash_attn_func") == (LAYERS, LAYERS)
    keys["selective_checkpointing"] = {"save_sliding_window": True}
    assert runs(record(tmp_path, "mistral", **keys), "flash_attn_func") == (LAYERS, 0)


def test_a_part_of_a_name_saves_operators(tmp_path):
    plain = record(tmp_path)
    selective = record(tmp_path, selective_checkpointing={"save": ["aten::silu"]})
    # silu's output: 48 wide, in bf16.
    assert kept_bytes(selective) - kept_bytes(plain) == LAYERS * ROWS * TOKENS * 48 * 2


def test_what_can_not_be_saved_is_told(tmp_path):
    notes = record(tmp_path, attn_implementation="eager", selective_checkpointing={"offload": True}).notes
    notes = {note.key: note for note in [*notes, *_build_notes(tmp_path)]}
    assert "eager attention" in notes["selective_checkpointing"].text
    assert notes["selective_checkpointing.offload"].kind == "not_modelled"


def _build_notes(tmp_path: Path) -> list[Any]:
    config = {"base_model": str(tmp_path), "micro_batch_size": 1, "learning_rate": 1e-4, "gradient_checkpointing": True,
              "attn_implementation": "eager", "selective_checkpointing": {"offload": True},
              "datasets": [{"path": "x", "type": "alpaca"}]}  # fmt: skip
    return build_model(read_recipe(config, hub="never")).notes
