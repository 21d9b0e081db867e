"""Added tokens: mean resizing compared with transformers' own run on the CPU, and `fix_untrained_tokens`."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kernel_recording import recording_on
from support.whole_runs import load, make_config

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.vocabulary import resize_vocabulary
from axmem_trace.notes import Notes

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj"]}


def short_config(tmp_path: Path, family: str = "llama", **keys: Any) -> dict[str, Any]:
    return make_config(tmp_path, family, sequence_len=16, **keys)


def load_short(tmp_path: Path, **keys: Any) -> tuple[Ledger, BuiltModel]:
    return load(read_recipe(short_config(tmp_path, **keys), hub="never"))


def sizes(ledger: Ledger) -> Counter[int]:
    return Counter(each.nbytes for each in ledger.allocations if each.op)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_mean_resizing_needs_the_same_memory_as_transformers_on_a_cpu(tmp_path, family):
    ledgers = []
    for device in ("cpu", "meta"):
        plain = read_recipe(short_config(tmp_path, family), hub="never")
        model = build_model(plain, device=device).module
        wanted = read_recipe(
            short_config(tmp_path, family, tokens=["<a>", "<b>"], mean_resizing_embeddings=True), hub="never"
        )
        recording = recording_on(device)
        recorder = recording.recorder
        with recording:
            resize_vocabulary(copy.copy(model), wanted, Notes())
        ledgers.append(recorder.make_ledger())
    on_cpu, on_meta = ledgers
    # On the CPU, the results of transformers' two checks are read from tensors of one byte.
    assert sizes(on_meta)[98 * 32 * 4] >= 1
    large = [Counter({size: n for size, n in sizes(each).items() if size >= 128}) for each in ledgers]
    assert large[0] == large[1]
    assert abs(on_cpu.peak().allocated_bytes - on_meta.peak().allocated_bytes) <= 2 * 512


def test_mean_resizing_has_two_fp32_copies_of_the_embedding(tmp_path):
    plain, _ = load_short(tmp_path, tokens=["<a>"])
    mean, _ = load_short(tmp_path, tokens=["<a>"], mean_resizing_embeddings=True)
    # The old embedding in fp32 (it is bf16, because loading's upcast is later), and this minus its mean, for both
    # matrices.
    assert sizes(mean)[96 * 32 * 4] - sizes(plain)[96 * 32 * 4] == 4
    cublas = sum(each.block_bytes for each in mean.allocations if each.op == "cuBLAS")
    assert mean.allocated_at(mean.ticks) - cublas == plain.allocated_at(plain.ticks)


@pytest.mark.parametrize(("value", "drawn"), [(None, True), (False, False), (True, True)])
def test_with_null_transformers_decides(tmp_path, value, drawn):
    config = short_config(tmp_path, tokens=["<a>"], mean_resizing_embeddings=value)
    assert read_recipe(config, hub="never").model.mean_resizing == drawn
    assert not read_recipe(short_config(tmp_path, tokens=["<a>"]), hub="never").model.mean_resizing


def resident(tmp_path: Path, family: str = "llama", **keys: Any) -> Any:
    return axmem_trace.estimate(short_config(tmp_path, family, **keys), hub="never").resident


def test_fixing_untrained_tokens_trains_embedding_and_head_with_an_adapter(tmp_path):
    plain, fixed = (resident(tmp_path, **LORA, **keys) for keys in ({}, {"fix_untrained_tokens": [5]}))
    # 96 x 32 in bf16, twice: a gradient each, and two states each.
    assert fixed.gradients - plain.gradients == 2 * 96 * 32 * 2
    assert fixed.optimizer - plain.optimizer == 2 * (2 * 96 * 32 * 2 + 4)  # and a step count each
    assert fixed.weights == plain.weights


def test_fixing_untrained_tokens_unties_gradients_and_states_but_not_weights(tmp_path):
    keys = {"attn_implementation": "flash_attention_2"}
    plain, fixed = (resident(tmp_path, "qwen2", **keys, **more) for more in ({}, {"fix_untrained_tokens": 5}))
    assert fixed.gradients - plain.gradients == 96 * 32 * 2
    assert fixed.weights == plain.weights


def test_untied_trainable_weights_are_not_changed(tmp_path):
    plain, fixed = (resident(tmp_path, **keys) for keys in ({}, {"fix_untrained_tokens": [5]}))
    assert fixed == plain


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
        {"peft_trainable_token_indices": [1, 2]},
        {"lora_target_modules": ["q_proj", "embed_tokens"], "lora_embedding_kernel": False},
    ],
)
def test_an_embedding_that_peft_has_wrapped_is_refused(tmp_path, keys):
    with pytest.raises(ConfigError, match="can't replace the parameters"):
        load_short(tmp_path, **{**LORA, **keys}, fix_untrained_tokens=[5])


def test_the_warning_is_reported(tmp_path):
    _, built = load_short(tmp_path, **LORA, fix_untrained_tokens=[5])
    found = [note for note in built.notes if note.key == "fix_untrained_tokens"]
    assert [(note.kind, note.bytes) for note in found] == [("warning", 2 * 96 * 32 * 2)]
    assert torch.is_tensor(built.module.get_output_embeddings().weight)
