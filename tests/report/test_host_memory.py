"""Memory outside the card, compared with arithmetic by hand: paged states, offloaded tensors, and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.report import Report

LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 8, "lora_target_linear": True}
LAYERS, TOKENS, WIDTH = 2, 48, 32


def estimate(tmp_path: Path, **keys: Any) -> Report:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "sequence_len": TOKENS,
        "pad_to_sequence_len": True,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "attn_implementation": "flash_attention_2",
        **keys,
    }
    return axmem_trace.estimate(config, hub="never")


def test_by_default_there_is_no_host_memory(tmp_path):
    report = estimate(tmp_path)
    assert (report.host.cpu.peak_bytes, report.host.managed.peak_bytes) == (0, 0)


def test_paged_states_of_large_tensors_are_in_managed_memory(tmp_path):
    wide = {"overrides_of_model_config": {"vocab_size": 8192}}
    # Tensors of at least 1e5 elements are paged: embedding and head, 8192 x 32, with two fp32 states each.
    host = estimate(tmp_path, optimizer="paged_adamw_32bit", **wide).host
    assert host.managed.optimizer == host.managed.peak_bytes == 2 * 2 * 8192 * 32 * 4
    # With 8-bit states; but an embedding's states stay fp32.
    host = estimate(tmp_path, optimizer="paged_adamw_8bit", **wide).host
    assert host.managed.optimizer == 2 * 8192 * 32 * 4 + 2 * 8192 * 32
    assert host.cpu.peak_bytes == 0


def test_offloaded_layer_inputs_are_pinned_in_powers_of_two(tmp_path):
    # 48 tokens of 32 in bf16, 3072 bytes, take 4096 each (CachingHostAllocator).
    host = estimate(tmp_path, gradient_checkpointing=True, activation_offloading="hidden_states").host
    assert host.cpu.activations == host.cpu.peak_bytes == LAYERS * 4096


def test_selective_outputs_too_small_to_offload_stay(tmp_path):
    keys = {"gradient_checkpointing": True, "selective_checkpointing": {"offload": True}}
    assert estimate(tmp_path, **keys).host.cpu.peak_bytes == 0


def test_weights_of_offloaded_layers_are_on_the_host(tmp_path):
    host = estimate(tmp_path, **LORA, layer_offloading=True).host
    # A layer: q, o 32 x 32, k, v 16 x 32, three of 48 x 32 (3072 -> 4096), two norms of 32. The adapter trains, so it
    # stays on the card.
    assert host.cpu.weights == host.cpu.peak_bytes == LAYERS * (2 * 2048 + 2 * 1024 + 3 * 4096 + 2 * 64)


def test_step_counters_of_unfused_optimizers(tmp_path):
    host = estimate(tmp_path, optimizer="adamw_torch").host
    assert host.cpu.optimizer == 4 * (2 + LAYERS * 9 + 1)  # fp32, one for each parameter


def test_loading_maps_the_checkpoint(tmp_path):
    notes = {}
    for name, keys in {"bf16": {}, "nf4": {**LORA, "adapter": "qlora", "load_in_4bit": True}}.items():
        notes[name] = [note for note in estimate(tmp_path, **keys).notes if note.key == "host.loading"]
    # 21,664 weights in bf16, whether loading quantises them or not.
    assert [note.bytes for note in notes["bf16"]] == [2 * 21_664]
    assert [note.bytes for note in notes["nf4"]] == [2 * 21_664]
