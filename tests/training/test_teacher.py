"""Distillation from a server: the additional tensors of a batch."""

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
from axmem_trace.training.traced_run import TracedRun

ROWS, TOKENS = 2, 64


def record(tmp_path: Path, **keys: Any) -> Ledger:
    return run(tmp_path, **keys).ledger


def run(tmp_path: Path, **keys: Any) -> TracedRun:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": ROWS,
        "sequence_len": TOKENS,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "plugins": ["axolotl.integrations.kd.KDPlugin"],
        "kd_trainer": True,
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module))


def test_the_teachers_tokens_come_with_each_batch(tmp_path):
    online = {"kd_online_server_base_url": "http://teacher", "kd_online_topk": 16}
    inputs = [
        Counter(
            each.nbytes
            for each in record(tmp_path, gradient_accumulation_steps=2, **keys).allocations
            if each.role == "input"
        )
        for keys in ({}, online)
    ]
    # Two steps of two batches: tokens and mask in int64, log-probabilities in fp32, 16 for each of 128 tokens.
    assert inputs[1] - inputs[0] == Counter({128 * 16 * 8: 8, 128 * 16 * 4: 4})
    assert not inputs[0] - inputs[1]


def test_without_a_server_the_data_give_the_number_of_logprobs(tmp_path):
    recipe_inputs = [each.nbytes for each in record(tmp_path, kd_online_topk=16).allocations if each.role == "input"]
    assert 128 * 16 * 8 not in recipe_inputs


def test_how_much_the_data_may_add(tmp_path):
    """2 batches of 2 x 64 positions with 8 + 4 + 4 bytes for each of at most 128 tokens."""
    (note,) = (note for note in run(tmp_path, gradient_accumulation_steps=2).notes if note.key == "kd_trainer")
    assert (note.direction, note.at_most_bytes) == ("more", 2 * 128 * 16 * 128)
    online = {"kd_online_server_base_url": "http://teacher", "kd_online_topk": 16}
    assert not [note for note in run(tmp_path, **online).notes if note.key == "kd_trainer"]
