"""Offloading to the host and back: activations, checkpointed inputs, and frozen layers."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kernel_recording import gpu_recording
from support.tiny_models import write_tiny_model
from torch import nn

from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.offloading.saved_tensors import ActivationOffload
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import Recording, record_run

LAYERS, INPUT = 6, 2 * 64 * 32 * 2
"""The number of layers, and the bytes of each layer's input: 2 rows of 64 tokens of 32 bf16 numbers."""
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj"]}


def record(tmp_path: Path, **keys: Any) -> Recording:
    config = {
        "base_model": write_tiny_model("llama", tmp_path, num_hidden_layers=LAYERS),
        "sequence_len": 64,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "attn_implementation": "flash_attention_2",
        "gradient_checkpointing": True,
        "lora_qkv_kernel": False,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    return record_run(recipe, built, build_optimizer(recipe, built.module))


def on_host(ledger: Ledger, step: int = 2) -> Counter[int]:
    return Counter(each.nbytes for each in ledger.allocations if each.op == "to_host" and each.step == step)


def kept_bytes(ledger: Ledger) -> int:
    """Bytes of the activations that are alive on the card when the second step's backward begins."""
    start = next(mark.tick for mark in ledger.marks if mark.phase == "backward" and mark.step == 2)
    return ledger.by_bucket(start)["activations"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_hidden_states_stay_on_the_card(tmp_path, reentrant):
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain = record(tmp_path, **LORA, **kwargs).ledger
    moved = record(tmp_path, **LORA, **kwargs, activation_offloading="hidden_states").ledger
    assert on_host(moved) == Counter({INPUT: LAYERS})
    # Two of the six inputs stay in the stash. The input of the first layer (the embedding's output) stays for another
    # reason: it is a leaf that requires grad (`enable_input_require_grads`), and autograd's `AccumulateGrad` node
    # references it.
    assert kept_bytes(plain) - kept_bytes(moved) == (LAYERS - 3) * INPUT


def test_an_input_is_on_the_card_only_for_its_layer(tmp_path):
    ledger = record(tmp_path, **LORA, activation_offloading="hidden_states").ledger
    back = [each for each in ledger.on_gpu if each.op == "aten.clone.default" and each.nbytes == INPUT]
    back = [each for each in back if each.step == 2 and each.phase == "backward" and "self_attn" not in each.module]
    assert len(back) == LAYERS - 2
    assert all(earlier.freed_tick < later.freed_tick for earlier, later in pairwise(back))


def test_a_full_fine_tune_does_not_offload_its_weights(tmp_path):
    ledger = record(tmp_path, activation_offloading=True).ledger
    assert on_host(ledger)[INPUT] >= LAYERS
    assert not any(each.role == "weight" and each.device == "cpu" for each in ledger.allocations)


def test_offloading_to_disk_is_reported_as_host_memory(tmp_path):
    recording = record(tmp_path, **LORA, activation_offloading="disk")
    assert any("runs `disk` as `true`" in note.text for note in recording.notes)
    assert on_host(recording.ledger) == on_host(record(tmp_path, **LORA, activation_offloading=True).ledger)


class Chain(nn.Module):
    """Sigmoids, each of which keeps its output of 4,096 bytes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = x.sigmoid()
        return x.sum()


@pytest.mark.parametrize(("streams", "left"), [(True, 5), (False, 0)])
def test_the_stash_keeps_the_latest_outputs(streams, left):
    """With streams the five latest outputs stay because of the copies. Without streams none stays."""
    recording = gpu_recording()
    recorder = recording.recorder
    offload = ActivationOffload(recorder, streams=streams)
    with recording:
        x = torch.empty(1024, device="meta", requires_grad=True)
        recorder.mark("forward", 1)
        with offload.training_step():
            loss = Chain()(x)
            recorder.mark("backward", 1)
            alive = [each for each in recorder.make_ledger().allocations if each.op == "aten.sigmoid.default"]
            assert sum(each.freed_tick > recorder.now for each in alive) == left
            loss.backward()
        ledger = recorder.make_ledger()
    assert on_host(ledger, step=1) == Counter({4096: 10})
    returned = [each for each in ledger.allocations if each.op == "aten.clone.default"]
    # The first node of backward gets its tensor from the stash, which is then emptied.
    assert len(returned) == (9 if streams else 10)
    assert all(each.freed_tick <= recorder.now for each in returned)


def test_small_tensors_parameters_and_storages_kept_on_gpu_stay():
    recording = gpu_recording()
    recorder = recording.recorder
    weight = nn.Parameter(torch.empty(32, 32, device="meta"))
    kept_on_gpu = frozenset({weight.untyped_storage()._cdata})
    with recording:
        x = torch.empty(64, 32, device="meta", requires_grad=True)
        recorder.mark("forward", 1)
        with ActivationOffload(recorder, streams=False, kept_on_gpu=kept_on_gpu).training_step():
            (x @ weight.t()).narrow(0, 0, 1).sigmoid().sum().backward()  # 32 numbers of 4 bytes: below 1,024
    assert on_host(recorder.make_ledger(), step=1) == Counter({64 * 32 * 4: 1})


def test_with_streams_a_transposed_weight_is_offloaded_too():
    """axolotl copies a tensor that is not contiguous, before TRL checks which storage it belongs to."""
    recording = gpu_recording()
    recorder = recording.recorder
    weight = nn.Parameter(torch.empty(32, 32, device="meta"))
    with recording:
        x = torch.empty(64, 32, device="meta", requires_grad=True)
        recorder.mark("forward", 1)
        with ActivationOffload(recorder, streams=True).training_step():
            (x @ weight.t()).sum().backward()
    assert on_host(recorder.make_ledger(), step=1) == Counter({64 * 32 * 4: 1, 32 * 32 * 4: 1})


def test_three_layers_are_on_the_card_at_most(tmp_path):
    ledger = record(tmp_path, **LORA, layer_offloading=True).ledger
    # A layer, frozen: q, o 32 x 32, k, v 16 x 32, three of 48 x 32, bf16, and two norms of 32, a block of 512 each.
    layer = 2 * 2048 + 2 * 1024 + 3 * 3072 + 2 * 512
    rest = 2 * 96 * 32 * 2 + 512 + 2 * 512  # embedding, head, last norm, two tables of the rotary embedding
    weights = {mark.phase: 0 for mark in ledger.marks}
    for mark, after in zip(ledger.marks, ledger.marks[1:], strict=False):
        ticks = [each.allocated_tick for each in ledger.on_gpu if mark.tick <= each.allocated_tick < after.tick]
        most = max((ledger.by_bucket(tick)["weights"] for tick in ticks), default=0)
        weights[mark.phase] = max(weights[mark.phase], most) if mark.step else weights[mark.phase]
    assert weights["forward"] == rest + 3 * layer  # the previous layer, the one that runs, and the next one
    assert weights["backward"] == rest + 3 * layer
    assert ledger.by_bucket(ledger.ticks)["weights"] == rest + layer  # the first layer, for the next step
    frozen = sum(each.nbytes for each in ledger.allocations if each.device == "cpu" and each.role == "weight")
    assert frozen == LAYERS * (2 * 2048 + 2 * 1024 + 3 * 4096 + 2 * 64)  # pinned: powers of two


def test_a_model_without_decoder_layers_is_reported(tmp_path):
    tmp_path.joinpath("config.json").write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "architectures": ["GPT2LMHeadModel"],
                "vocab_size": 96,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 64,
            }
        )
    )
    config = {
        "base_model": str(tmp_path),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "layer_offloading": True,
        "sequence_len": 64,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    recipe = read_recipe(config, hub="never")
    built = build_model(recipe)
    recording = record_run(recipe, built, build_optimizer(recipe, built.module))
    assert [note.key for note in recording.notes if "no list of decoder layers" in note.text] == ["layer_offloading"]
