"""The temporary memory of loading: the warm-up of the cache, the parts of fused weights, and casts in both
directions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.kernel_recording import gpu_recording
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.ledger import Ledger
from axmem_trace.models import build_model
from axmem_trace.training.loading import LoadRecorder
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import make_recording, record_run

FROM_PRETRAINED, WARM_UP = "transformers.from_pretrained", "transformers.caching_allocator_warmup"


def load(tmp_path: Path, family: str = "llama", *, assumptions: Any = (), axolotl: str = "", **keys: Any) -> Ledger:
    config = {
        "base_model": write_tiny_model(family, tmp_path / family),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    recipe = read_recipe(config, assumptions=assumptions, hub="never", axolotl=axolotl)
    recording = gpu_recording()
    recorder = recording.recorder
    built = build_model(recipe, watch=LoadRecorder(recording, recipe).loaded)
    for tensor in [*built.module.parameters(), *built.module.buffers(), *(each.tensor for each in built.state_tensors)]:
        assert recorder.allocation_tick(tensor), "everything that is there after loading was seen to come"
    return recorder.make_ledger()


def sizes(ledger: Ledger, op: str) -> Counter[int]:
    return Counter(each.nbytes for each in ledger.allocations if each.op == op)


def test_a_full_fine_tune_loads_its_weights_and_warms_the_cache_with_as_many_bytes(tmp_path):
    ledger = load(tmp_path, attn_implementation="flash_attention_2", axolotl="0.19.0")
    # Two untied 96 x 32 embeddings; a layer: q, o 32 x 32, k, v 16 x 32, three of 48 x 32, two norms of 32; last norm:
    # 2 x 3072 + 2 x (2 x 1024 + 2 x 512 + 3 x 1536 + 64) + 32 = 21,664 weights in bf16; two fp32 rotary tables of 4.
    assert sizes(ledger, WARM_UP) == Counter([21_664 * 2 + 2 * 4 * 4])
    assert not sizes(ledger, FROM_PRETRAINED)
    # Embeddings become fp32 (96 x 32 x 4 = 12,288) and, under flash attention, bf16 again (6,144); so do five norms.
    casts = Counter({12_288: 2, 6_144: 2, 32 * 4: 5, 32 * 2: 5})
    assert sizes(ledger, "aten._to_copy.default") == casts
    end = ledger.allocated_at(ledger.ticks)
    assert end == sum(each.block_bytes for each in ledger.alive_at(ledger.ticks))
    # The peak is at the head's cast: the embedding and five norms are fp32, and the head exists in both dtypes.
    assert ledger.peak().allocated_bytes == end + (12_288 - 6_144) + 12_288


def test_from_0_20_on_embeddings_are_not_cast_there_and_back(tmp_path):
    ledger = load(tmp_path, attn_implementation="flash_attention_2", axolotl="0.20.0")
    assert sizes(ledger, "aten._to_copy.default") == Counter({32 * 4: 5, 32 * 2: 5}), "five norms, fp32 and bf16 again"
    # The peak is at the cast of the first norm back to bf16: five norms are fp32 (512-byte blocks, as in bf16), and one
    # is bf16.
    assert ledger.peak().allocated_bytes == ledger.allocated_at(ledger.ticks) + 512


@pytest.mark.parametrize(("release", "cast"), [("0.19.0", 2), ("0.20.0", 0), ("0.21.0", 0)])
def test_kbit_preparation_does_not_change_embeddings_from_0_20_on(tmp_path, release, cast):
    keys = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    ledger = load(tmp_path, axolotl=release, **keys)
    # embedding and head, 96 x 32, in fp32: 12,288 each (in 0.19 axolotl's own cast does it first, and peft has nothing
    # to do)
    assert sizes(ledger, "aten._to_copy.default")[12_288] == cast


def test_sdpa_leaves_norms_and_embeddings_in_fp32(tmp_path):
    assert sizes(load(tmp_path), "aten._to_copy.default") == Counter({12_288: 2, 32 * 4: 5})


def test_before_4_50_weights_load_in_order_of_names_without_cache_warm_up(tmp_path):
    keys = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    ledgers = {}
    for loading in ("current", "before_4_50"):
        ledgers[loading] = load(tmp_path, assumptions={"loading": loading}, **keys)
    current, old = ledgers["current"], ledgers["before_4_50"]
    weights = {name: [each for each in ledgers[name].allocations if each.role == "weight"] for name in ledgers}
    weight_sizes = [Counter(each.nbytes for each in found) for found in weights.values()]
    assert sizes(current, WARM_UP)
    assert not sizes(old, WARM_UP)
    assert sizes(current, FROM_PRETRAINED) == sizes(old, FROM_PRETRAINED)
    assert weight_sizes[0] == weight_sizes[1]
    # The head comes first, because `lm_head` < `model`. Then `embed_tokens` < `layers` < `norm`. Within a layer
    # `input_layernorm` < `mlp` < `post_attention_layernorm` < `self_attn`. Both rotary tables are last.
    places = [each.module.split("model.")[-1] for each in weights["before_4_50"]]
    assert places[:3] == ["lm_head", "embed_tokens", "layers.0.input_layernorm"]
    assert places[-3:] == ["norm", "rotary_emb", "rotary_emb"]
    order = list(dict.fromkeys(place.split(".")[2] for place in places if place.startswith("layers.0.")))
    assert order == ["input_layernorm", "mlp", "post_attention_layernorm", "self_attn"]


def test_four_bits_arrive_one_weight_at_a_time(tmp_path):
    ledger = load(tmp_path, adapter="qlora", load_in_4bit=True, lora_r=4, lora_alpha=8, lora_target_linear=True)
    # Each weight in bf16. Its absmax, fp32 for every 64 weights, twice: unchanged, and with its mean subtracted.
    weights = {1024: 4, 512: 4, 1536: 6}
    expected: Counter[int] = Counter()
    for elements, number in weights.items():
        expected[elements * 2] += number
        expected[elements // 64 * 4] += 2 * number
    assert sizes(ledger, FROM_PRETRAINED) == expected
    # Half a byte for each linear weight; two bytes for the 2 x 3072 weights of the embeddings and the 160 of the norms.
    linears = 4 * 1024 + 4 * 512 + 6 * 1536
    warm_up = sizes(ledger, WARM_UP)
    assert len(warm_up) == 1
    assert next(iter(warm_up)) - (linears // 2 + 2 * (2 * 3072 + 160) + 2 * 4 * 4) == 0


@pytest.mark.parametrize(("dtype", "copies"), [({"bf16": True}, 2), ({"bf16": False, "fp16": True}, 1)])
def test_eight_bits_pass_through_fp16(tmp_path, dtype, copies):
    ledger = load(tmp_path, adapter="lora", load_in_8bit=True, lora_r=4, lora_alpha=8, lora_target_linear=True, **dtype)
    expected = Counter({2048: 4 * copies, 1024: 4 * copies, 3072: 6 * copies})
    assert sizes(ledger, FROM_PRETRAINED) == expected


def test_fused_experts_are_merged_from_parts_of_the_same_size(tmp_path):
    ledger = load(tmp_path, "qwen3_moe", attn_implementation="flash_attention_2")
    # Per layer: gate_up 4 x 48 x 32 and down 4 x 32 x 24, bf16.
    assert sizes(ledger, FROM_PRETRAINED) == Counter({4 * 48 * 32 * 2: 2, 4 * 32 * 24 * 2: 2})


def test_the_warm_up_leaves_free_memory_on_a_small_card(tmp_path):
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    recipe = read_recipe(config, hub="never")
    # The card has 1.2 GiB and 1001 bytes: 43,360 are needed, and fp16 takes an even number of bytes.
    recipe = replace(recipe, gpu=replace(recipe.gpu, memory_bytes=1_288_490_188 + 1001))
    recording = gpu_recording()
    recorder = recording.recorder
    build_model(recipe, watch=LoadRecorder(recording, recipe).loaded)
    assert sizes(recorder.make_ledger(), WARM_UP) == Counter([1000])


def test_rules_exist_in_a_process_that_has_not_imported_the_libraries(tmp_path):
    """The first estimate imports bitsandbytes. The rules for its operators are added after that, and before loading."""
    common = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "sequence_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "peft_use_dora": True,
    }
    adapters = ({"adapter": "lora", "load_in_8bit": True}, {"adapter": "qlora", "load_in_4bit": True})
    configs = [{**common, **adapter} for adapter in adapters]
    program = "import axmem_trace\n"
    program += f"print([axmem_trace.estimate(each, hub='never').peak.allocated_bytes for each in {configs!r}])"
    in_a_new_process = json.loads(subprocess.check_output([sys.executable, "-c", program], text=True))
    assert [axmem_trace.estimate(each, hub="never").peak.allocated_bytes for each in configs] == in_a_new_process


def test_two_estimates_in_one_process_are_the_same(tmp_path):
    """DoRA's initialisation multiplies matrices while the model is loaded: cuBLAS's workspace is allocated there,
    once."""
    keys = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "peft_use_dora": True}
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "sequence_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    peaks = set()
    for _ in range(2):
        recording = make_recording(recipe)
        built = build_model(recipe, watch=LoadRecorder(recording, recipe).loaded)
        ledger = record_run(recipe, built, build_optimizer(recipe, built.module), recording=recording).ledger
        peaks.add(ledger.peak().allocated_bytes)
        workspaces = [each.phase for each in ledger.allocations if each.nbytes == 8_519_680]
        assert workspaces == ["load", "backward"]  # the main thread's and autograd's
    assert len(peaks) == 1
