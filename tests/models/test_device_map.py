"""`gpu_memory_limit`, `max_memory`, `device_map`: the modules that stay on the host, and the run with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model
from support.whole_runs import load, make_recipe, record

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.models.device_map import is_on_host
from axmem_trace.recipe.recipe import Recipe

# The tiny Llama in bf16: embedding and head 6144 bytes each, a layer 15,488 (four projections 6144, MLP 9216, two norms
# 128), the last norm 64; with the fp32 rotary table 43,344 in all. accelerate keeps memory free for the largest layer.
LAYER, HEAD, NORM = 15_488, 6144, 64
TO_SECOND_LAYER = {"max_memory": {0: 36_000, "cpu": "1GiB"}}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}


def read(tmp_path: Path, **keys: Any) -> Recipe:
    return make_recipe(tmp_path, sequence_len=64, attn_implementation="flash_attention_2", **keys)


def on_host(built: Any) -> int:
    return sum(each.nbytes for each in built.module.parameters() if is_on_host(each))


MAP = {
    "device_map": {
        "model.embed_tokens": 0,
        "model.rotary_emb": 0,
        "model.layers.0": 0,
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
}


def test_modules_on_the_host_are_missing_from_the_gpu_after_loading(tmp_path):
    plain, _ = record(read(tmp_path))
    placed, built = record(read(tmp_path, **MAP))
    assert on_host(built) == LAYER + NORM + HEAD

    def after_load(ledger: Ledger) -> int:
        loading = [each for each in ledger.on_gpu if each.role == "weight" and each.phase == "load"]
        return sum(each.nbytes for each in loading if each.freed_tick > ledger.ticks)

    assert after_load(plain) - after_load(placed) == LAYER + NORM + HEAD
    host = [each for each in placed.allocations if each.device == "cpu" and each.role == "weight"]
    assert sum(each.nbytes for each in host if each.freed_tick > placed.ticks) == LAYER + NORM + HEAD


def test_each_forward_copies_weights_and_autograd_keeps_the_copies(tmp_path):
    ledger, _ = record(read(tmp_path, **MAP))
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward" and mark.step == 1)
    copies = [each for each in ledger.alive_at(start) if each.role == "weight" and each.phase == "forward"]
    # All of them are trained, so the products keep the second layer's linear weights and the head. A norm's product
    # keeps its weight too. Nothing is saved when backward begins.
    assert sum(each.nbytes for each in copies) == LAYER + NORM + HEAD


@pytest.mark.parametrize(("reentrant", "kept"), [(True, NORM + HEAD), (False, LAYER + NORM + HEAD)])
def test_only_the_reentrant_variant_frees_checkpointed_copies(tmp_path, reentrant, kept):
    """With reentrant checkpointing, a layer's forward builds no graph. With non-reentrant checkpointing it does, and
    the leaves of the graph keep their weights: checkpointing drops only the tensors that operators save."""
    kwargs = {"use_reentrant": reentrant}
    ledger, _ = record(read(tmp_path, **MAP, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs))
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward" and mark.step == 1)
    copies = [each for each in ledger.alive_at(start) if each.role == "weight" and each.phase == "forward"]
    assert sum(each.nbytes for each in copies) == kept


def test_modules_on_the_host_are_never_trained(tmp_path):
    plain, _ = record(read(tmp_path))
    placed, built = record(read(tmp_path, **MAP))

    def states(ledger: Ledger) -> int:
        return sum(
            each.nbytes for each in ledger.allocations if each.role == "optimizer" and each.freed_tick > ledger.ticks
        )

    # Two bf16 states of the missing parameters, and eleven step counters of 4 bytes.
    assert states(plain) - states(placed) == 2 * (LAYER + NORM + HEAD) + 11 * 4
    assert any("never trained" in note.text for note in built.notes)


def test_limits_are_filled_as_in_accelerate(tmp_path):
    recipe = read(tmp_path, **TO_SECOND_LAYER)
    _, built = record(recipe)
    # 36,000 bytes less the largest module, the embedding's 6144 (no class is kept whole), are 29,856: the embedding, the
    # first layer and the second's attention fill 27,776, and the MLP's first projection no longer fits.
    assert on_host(built) == LAYER - 6144 + NORM + HEAD
    assert list(built.notes)[-1].key == "max_memory"


def test_a_limit_that_is_large_enough_changes_nothing(tmp_path):
    reports = [
        axmem_trace.estimate(_config(tmp_path, **keys), hub="never")
        for keys in ({}, {"gpu_memory_limit": 1}, {"max_memory": {0: "1GiB", "cpu": "1GiB"}})
    ]
    assert len({report.peak.allocated_bytes for report in reports}) == 1
    assert not [note for note in reports[1].notes if note.key == "gpu_memory_limit"]


def _config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "sequence_len": 64,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }


def test_a_lower_limit_moves_weights_to_the_host(tmp_path):
    plain, limited = (axmem_trace.estimate(_config(tmp_path, **keys), hub="never") for keys in ({}, TO_SECOND_LAYER))
    # The second layer's MLP in bf16; two norms, the last norm and the head in fp32, to which axolotl casts them.
    moved = 9216 + 2 * (128 + NORM + HEAD)
    assert plain.resident.weights - limited.resident.weights == moved
    assert limited.host.cpu.weights >= moved


def test_an_adapter_with_modules_on_the_host_fails_in_its_first_backward(tmp_path):
    recipe = read(tmp_path, **LORA, **MAP)
    _, built = record(recipe)
    assert any("first backward" in note.text and note.kind == "refused" for note in built.notes)
    _, built = record(read(tmp_path, **LORA, **MAP, peft_layers_to_transform=[0]))
    assert not any("first backward" in note.text for note in built.notes)


def test_loading_on_the_cpu_needs_no_gpu_memory(tmp_path):
    ledger, _ = load(read(tmp_path, device_map="cpu"))
    assert not ledger.allocations
    plain, moved = (
        axmem_trace.estimate(_config(tmp_path, **keys), hub="never") for keys in ({}, {"device_map": "cpu"})
    )
    assert moved.phases["step_2"].allocated_bytes == plain.phases["step_2"].allocated_bytes


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({**QLORA, "max_memory": {0: 30_000, "cpu": "1GiB"}}, "refuses to quantise a model with modules on the CPU"),
        ({**QLORA, "device_map": "cpu"}, "loaded on the CPU"),
        ({"device_map": "cuda:1"}, "no such device"),
        ({"device_map": {"": 3}}, "no such device"),
        ({"max_memory": {0: "lots"}}, "can't read these limits"),
        ({"gpu_memory_limit": "20"}, "can't read these limits"),
        ({"gpu_memory_limit": 20, "max_memory": {0: "20GiB"}}, "mutually exclusive"),
    ],
)
def test_what_stops_is_refused(tmp_path, keys, words):
    with pytest.raises(ConfigError, match=words):
        build_model(read(tmp_path, **keys))


@pytest.mark.parametrize("value", ["auto", "balanced", "sequential", None, "cuda:0", 0, {"": 0}, {"": "cuda:0"}])
def test_device_maps_with_all_modules_on_the_gpu(tmp_path, value):
    placement = read(tmp_path, device_map=value).placement
    assert (placement.on_host, placement.on_host_first, dict(placement.max_memory)) == ((), False, {})


def test_weights_that_fill_the_card_are_reported(tmp_path):
    config = {
        "base_model": "meta-llama/Llama-3.1-8B",
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **LORA,
    }
    notes = {}
    for gpu in ("16GiB", "24GiB"):
        built = build_model(read_recipe(config, hub="never", gpu=gpu))
        notes[gpu] = [note for note in built.notes if note.key == "device_map"]
    assert [note.kind for note in notes["16GiB"]] == ["warning"]
    assert not notes["24GiB"]
