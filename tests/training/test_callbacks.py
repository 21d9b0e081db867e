"""Grokfast and ReLoRA by hand: the memory that their callbacks keep, and that they allocate between the passes of a
step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.whole_runs import make_recipe, record

from axmem_trace.ledger import NEVER, Ledger
from axmem_trace.recipe.recipe import Recipe

GROKFAST = {"plugins": ["axolotl.integrations.grokfast.GrokfastPlugin"]}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["down_proj"]}
RELORA = {"relora": True, "jagged_restart_steps": 10}
MATRIX = 32 * 48
"""Number of elements of down_proj."""


def read(tmp_path: Path, **keys: Any) -> Recipe:
    return make_recipe(tmp_path, sequence_len=16, attn_implementation="flash_attention_2", **keys)


def run(tmp_path: Path, **keys: Any) -> Ledger:
    ledger, _ = record(read(tmp_path, **keys))
    return ledger


def kept(ledger: Ledger, role: str) -> int:
    return sum(each.nbytes for each in ledger.allocations if each.role == role and each.freed_tick == NEVER)


def test_grokfast_keeps_a_copy_of_all_gradients(tmp_path):
    plain, filtered = run(tmp_path), run(tmp_path, **GROKFAST)
    # The tiny Llama's 21,664 weights, all bf16 under flash attention.
    assert kept(filtered, "optimizer") - kept(plain, "optimizer") == 21_664 * 2


def test_grokfast_allocates_three_temporaries_per_gradient(tmp_path):
    ledger = run(tmp_path, **GROKFAST)
    first = [each for each in ledger.allocations if each.phase == "optimizer" and each.step == 1]
    products = Counter(each.nbytes for each in first if each.op == "aten.mul.Tensor")
    # Of the embedding and of the head, 96 x 32 in bf16: average x alpha, gradient x (1 - alpha), average x lamb.
    assert products[96 * 32 * 2] == 2 * 3


def test_grokfast_with_adapters_copies_only_adapter_gradients(tmp_path):
    plain, filtered = run(tmp_path, **LORA), run(tmp_path, **LORA, **GROKFAST)
    assert kept(filtered, "optimizer") - kept(plain, "optimizer") == 2 * (4 * 48 + 32 * 4) * 4


def restart(ledger: Ledger) -> list[Any]:
    """Allocations of the restart, which comes after the last step's optimizer."""
    last = max(mark.tick for mark in ledger.marks)
    return [each for each in ledger.allocations if each.allocated_tick > last]


def test_relora_merges_one_layer_at_a_time(tmp_path):
    allocated = restart(run(tmp_path, **LORA, **RELORA))
    # Two layers: the product of B and A, and its scaled copy, in the adapter's fp32.
    assert Counter(each.nbytes for each in allocated if each.op == "aten.mm.default") == Counter({MATRIX * 4: 2})
    assert Counter(each.nbytes for each in allocated if each.nbytes == MATRIX * 4) == Counter({MATRIX * 4: 4})
    assert all(each.freed_tick != NEVER for each in allocated), "and keeps nothing"


def test_relora_holds_three_products_at_its_peak(tmp_path):
    ledger = run(tmp_path, **LORA, **RELORA)
    before = ledger.allocated_at(max(mark.tick for mark in ledger.marks))
    second = [each for each in restart(ledger) if each.op == "aten.mm.default"][1]
    # A variable still holds the first layer's scaled product when the second layer's product is made and scaled.
    assert ledger.allocated_at(second.allocated_tick + 1) - before == 3 * MATRIX * 4


def test_relora_sorts_states_to_prune_them(tmp_path):
    by_size = [each for each in restart(run(tmp_path, **LORA, **RELORA)) if each.op == "aten.sort.default"]
    # Per layer A of 4 x 48 and B of 32 x 4, two fp32 states each: values in fp32, positions in int64.
    expected = Counter({4 * 48 * 4: 4, 4 * 48 * 8: 4, 32 * 4 * 4: 4, 32 * 4 * 8: 4})
    assert Counter(each.nbytes for each in by_size) == expected
    at_random = restart(run(tmp_path, **LORA, **RELORA, relora_prune_method="reset"))
    assert not [each for each in at_random if each.op == "aten.sort.default"]
    assert len([each for each in at_random if each.op == "aten.rand.default"]) == 8


def test_relora_in_8_bit_reads_weights_from_the_checkpoint(tmp_path):
    allocated = restart(run(tmp_path, **LORA, **RELORA, load_in_8bit=True))
    found = Counter(each.nbytes for each in allocated if each.op != "aten.sort.default" and each.nbytes >= MATRIX)
    # Per layer: in fp32 the product, its scaled copy and the sum; in 16 bits the checkpoint's weight, the copy that is
    # saved and the copy that is read again; the packed weight.
    assert found == Counter({MATRIX * 4: 6, MATRIX * 2: 6, MATRIX: 2})
    on_host = restart(run(tmp_path, **LORA, **RELORA, load_in_8bit=True, relora_cpu_offload=True))
    found = Counter(each.nbytes for each in on_host if each.op != "aten.sort.default" and each.nbytes >= MATRIX)
    assert found == Counter({MATRIX * 2: 2, MATRIX: 2})


def test_relora_in_4_bit_leaves_fp32_weights_and_reports_it(tmp_path):
    keys = {**LORA, **RELORA, "adapter": "qlora", "load_in_4bit": True}
    ledger = run(tmp_path, **keys)
    left = [each for each in restart(ledger) if each.freed_tick == NEVER]
    assert [(each.nbytes, each.role) for each in left] == [(MATRIX * 4, "weight")] * 2
    assert any("first restart" in note.text for note in read(tmp_path, **keys).notes)


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"max_steps": 10}, "jagged_restart_steps", "never merges"),
        ({"optimizer": "lion_8bit"}, "optimizer", "adam in their name"),
        ({"relora_cpu_offload": True}, "relora_cpu_offload", "quantised base weights only"),
    ],
)
def test_relora_traps_are_reported(tmp_path, keys, key, words):
    found = [note.text for note in read(tmp_path, **LORA, **RELORA, **keys).notes if note.key == key]
    assert len(found) == 1
    assert words in found[0]


def test_without_a_restart_in_the_run_nothing_is_merged(tmp_path):
    assert read(tmp_path, **LORA, **RELORA, max_steps=10).adapter.relora_steps == 0
    assert read(tmp_path, **LORA, **RELORA, max_steps=11).adapter.relora_steps == 10
