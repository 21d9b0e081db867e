"""Text generated after evaluation: a key-value cache calculated by hand, and the logits of one token."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

ROWS, TOKENS, NEW = 2, 64, 16
EVAL = {"val_set_size": 0.1, "eval_steps": 10}
VALUES_KEEP_THEIR_DTYPE = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24)


def record(tmp_path: Path, **keys: Any) -> Ledger:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": ROWS,
        "sequence_len": TOKENS,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **EVAL,
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module)).ledger


def more(tmp_path: Path, **keys: Any) -> Counter[tuple[str, int]]:
    """The allocations that the key adds to evaluation, by operator and size."""
    found = [
        Counter((each.op, each.nbytes) for each in record(tmp_path, **each_keys).on_gpu if each.phase == "eval")
        for each_keys in (keys, {})
    ]
    return found[0] - found[1]


@pytest.mark.parametrize(("kernel", "itemsize"), [("sdpa", 4), ("flash_attention_2", 2)])
def test_keys_and_values_of_all_layers_are_there_at_the_end(tmp_path, kernel, itemsize):
    ledger = record(tmp_path, do_causal_lm_eval=True, eval_max_new_tokens=NEW, attn_implementation=kernel)
    # For each layer: 2 rows, 2 heads of 8, 80 tokens. Keys are rotated in fp32 if a full fine-tune leaves the residual
    # stream in fp32. In the cache, values have the keys' dtype until transformers 5.23, and their own dtype, bf16, from
    # 5.24 on (cache_utils.py `DynamicLayer.lazy_initialization`).
    elements = ROWS * 2 * (TOKENS + NEW) * 8
    keys, values = elements * itemsize, elements * (2 if VALUES_KEEP_THEIR_DTYPE else itemsize)
    evaluation = [each for each in ledger.on_gpu if each.phase == "eval"]
    end = max(each.allocated_tick for each in evaluation if each.op.startswith("aten.mm"))
    alive = Counter(each.nbytes for each in ledger.alive_at(end) if each.phase == "eval")
    assert alive >= Counter([keys, values] * 2), "of both layers, while the head multiplies"


def test_logits_of_only_the_last_token(tmp_path):
    found = more(tmp_path, do_causal_lm_eval=True, eval_max_new_tokens=NEW)
    assert found[("aten._to_copy.default", ROWS * 96 * 4)] == 1, "accelerate's fp32 copy of 2 x 1 x 96"


def test_samples_are_generated_one_row_at_a_time(tmp_path):
    found = more(tmp_path, generate_samples=True, generation_max_new_tokens=NEW)
    sizes = {nbytes for _, nbytes in found}
    # The prompt is half of a row. With the new tokens, keys and values have 48 tokens.
    assert 2 * 48 * 8 * 2 in sizes


def test_without_evaluation_nothing_is_generated(tmp_path):
    keys = {"do_causal_lm_eval": True, "eval_steps": None, "val_set_size": 0}
    assert not [each for each in record(tmp_path, **keys).on_gpu if each.phase == "eval"]
