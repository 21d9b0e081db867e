"""Selective checkpointing: attention's outputs are saved and not recomputed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import TINY

from axmem_trace.config import read_recipe
from axmem_trace.models import build_model
from axmem_trace.training.offloading import selective_checkpointing
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import Recording, record_run

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
    """The number of the operator's outputs in the first step: in forward, and in recomputation."""
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


def test_a_part_of_a_name_selects_operators_to_save(tmp_path):
    plain = record(tmp_path)
    selective = record(tmp_path, selective_checkpointing={"save": ["aten::silu"]})
    # silu's output: 48 wide, in bf16.
    assert kept_bytes(selective) - kept_bytes(plain) == LAYERS * ROWS * TOKENS * 48 * 2


def test_outputs_that_cannot_be_saved_are_reported(tmp_path):
    record(tmp_path)
    config = {
        "base_model": str(tmp_path),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "gradient_checkpointing": True,
        "attn_implementation": "eager",
        "selective_checkpointing": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    notes = {note.key: note for note in build_model(read_recipe(config, hub="never")).notes}
    assert "eager attention" in notes["selective_checkpointing"].text


OFFLOAD = {"attn_implementation": "flash_attention_2", "selective_checkpointing": {"offload": True}}
FA2 = {"attn_implementation": "flash_attention_2", "selective_checkpointing": True}


def test_offloaded_outputs_wait_in_host_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(selective_checkpointing, "MIN_BYTES", LOGSUMEXP)
    saved, offloaded = record(tmp_path, **FA2), record(tmp_path, **OFFLOAD)
    assert runs(offloaded, "flash_attn_func") == (LAYERS, 0), "nothing is recomputed"
    # Output and log-sum-exp of each layer are offloaded. The latest two tensors, the last layer's, stay on the card
    # until two more are offloaded.
    assert kept_bytes(saved) - kept_bytes(offloaded) == (LAYERS - 1) * (OUTPUT + LOGSUMEXP)
    host = [each for each in offloaded.ledger.allocations if each.device == "cpu" and each.op == "to_host"]
    # The second step takes its buffers from the pool and allocates none.
    assert Counter(each.nbytes for each in host) == Counter({OUTPUT: LAYERS, LOGSUMEXP: LAYERS})


def test_offloaded_outputs_come_back_one_layer_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(selective_checkpointing, "MIN_BYTES", LOGSUMEXP)
    ledger = record(tmp_path, **OFFLOAD).ledger
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward" and mark.step == 1)
    back = [each for each in ledger.allocations if each.op == "aten.clone.default" and each.allocated_tick > start]
    back = [each for each in back if each.step == 1 and each.nbytes in (OUTPUT, LOGSUMEXP)]
    assert Counter(each.nbytes for each in back)[LOGSUMEXP] == LAYERS
    first = [each for each in back if each.nbytes == LOGSUMEXP]
    assert first[1].allocated_tick < first[0].freed_tick, (
        "the layer before's is fetched as the last one's recomputation begins"
    )


def test_small_outputs_stay(tmp_path):
    assert kept_bytes(record(tmp_path, **OFFLOAD)) == kept_bytes(record(tmp_path, **FA2))
