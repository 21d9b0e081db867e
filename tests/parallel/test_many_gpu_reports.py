"""Reports for many GPUs: the memory of a rank, compared with arithmetic by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.rank_configs import make_rank_config
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.report import Report

# the tiny llama: vocabulary 96, hidden 32, MLP 48, 2 layers, 4 heads of 8, 2 of them for keys and values.
# A layer: q 32 x 32, k and v 16 x 32, o 32 x 32, gate and up 48 x 32, down 32 x 48, two norms of 32
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
# embedding, head, norm
ROOT = 2 * 96 * 32 + 32
PARAMETERS = 2 * LAYER + ROOT  # 21,664; every first dimension is a multiple of 8
NUM_TENSORS = 2 * 9 + 3
ROTARY = 2 * 4 * 4
"""Bytes of the rotary table and its original, which every rank has in full: 4 fp32 frequencies each."""


def report_of(tmp_path: Path, gpus: int, *, axolotl: str = "", **keys: Any) -> Report:
    return estimate(make_rank_config(tmp_path, **keys), num_gpus=gpus, axolotl=axolotl, hub="never")


@pytest.mark.parametrize("gpus", [2, 8])
def test_fsdp2_shards_weights_gradients_and_states(tmp_path: Path, gpus: int) -> None:
    report = report_of(tmp_path, gpus, fsdp_version=2, fsdp_config={"reshard_after_forward": True})
    # bf16 parameters, gradients and two states, each 1 / gpus
    assert report.resident.weights == 2 * PARAMETERS // gpus + ROTARY
    assert report.resident.gradients == 2 * PARAMETERS // gpus
    assert report.resident.optimizer >= 2 * 2 * PARAMETERS // gpus  # and a step counter for each tensor
    assert report.resident.optimizer - 2 * 2 * PARAMETERS // gpus <= 21 * 4
    assert report.model.parameters == PARAMETERS
    assert f"{gpus} GPUs, FSDP2, {gpus} shards" in report.run["ranks"]


def test_fsdp1_keeps_trainable_parameters_in_fp32(tmp_path: Path) -> None:
    report = report_of(
        tmp_path, 4, axolotl="0.19.0", fsdp_version=1, fsdp_config={"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    )
    # every unit's size is a multiple of 4 and of 16 bytes: no padding. fp32: 4 + 4 + 8 bytes for each parameter
    assert report.resident.weights == 4 * PARAMETERS // 4 + ROTARY  # buffers become bf16 in the first forward
    assert report.resident.gradients == 4 * PARAMETERS // 4
    assert report.model.parameters == PARAMETERS


def test_ddp_keeps_buckets_in_addition_to_the_gradients(tmp_path: Path) -> None:
    alone, ddp = report_of(tmp_path, 1), report_of(tmp_path, 2)
    assert ddp.resident == alone.resident
    first = ddp.phases["step_1"].phases["optimizer"].end_bytes - alone.phases["step_1"].phases["optimizer"].end_bytes
    # one bucket of all bf16 gradients, rounded up to 512 bytes
    assert first == -(-2 * PARAMETERS // 512) * 512


def test_without_efficient_loading_each_gpu_has_the_whole_model(tmp_path: Path) -> None:
    whole = report_of(tmp_path, 8, fsdp_version=2, fsdp_config={"reshard_after_forward": True}).phases["load"]
    parts = report_of(tmp_path, 8, fsdp_version=2, fsdp_config={"cpu_ram_efficient_loading": True}).phases["load"]
    assert whole.allocated_bytes > 2 * PARAMETERS * 9 // 8  # the whole in bf16, and the shards
    # shards so far, one embedding whole and its part
    assert parts.allocated_bytes < 2 * PARAMETERS // 8 + 2 * 96 * 32 * 9 // 8 + 40 * 512


def test_accumulation_keeps_whole_gradients_until_they_are_reduced(tmp_path: Path) -> None:
    keys = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}, "gradient_accumulation_steps": 4}
    kept = report_of(tmp_path, 8, **keys)
    synced = report_of(
        tmp_path, 8, accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}, **keys
    )
    forward = kept.phases["step_2"].phases["forward"].allocated_bytes
    reduced = synced.phases["step_2"].phases["forward"].allocated_bytes
    # bf16 gradients of all parameters, against an eighth of them
    assert forward - reduced == pytest.approx(2 * PARAMETERS * 7 / 8, rel=0.3)


def test_everything_is_restored(tmp_path: Path) -> None:
    before = (torch.UntypedStorage.resize_, torch.Tensor.data_ptr, torch.Tensor.record_stream)
    report_of(tmp_path, 2, fsdp_version=2, fsdp_config={"reshard_after_forward": True})
    assert before == (torch.UntypedStorage.resize_, torch.Tensor.data_ptr, torch.Tensor.record_stream)
    assert not hasattr(torch, "meta")
    assert not dist.is_initialized()


@pytest.mark.parametrize("version", [1, 2])
def test_quantised_weights_are_sharded_and_their_states_are_not(tmp_path: Path, version: int) -> None:
    """With n ranks, a rank has D / n + R bytes, so the differences from 2 to 4 to 8 ranks halve."""
    keys = {
        "adapter": "qlora",
        "load_in_4bit": True,
        "lora_r": 8,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "fsdp_version": version,
        "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    }
    reports = [report_of(tmp_path, gpus, **keys) for gpus in (2, 4, 8)]
    two, four, eight = (report.resident.weights for report in reports)
    assert two - four == 2 * (four - eight)
    # nested absmax: a byte for each block of 64 of the 2 * (3,072 + 4,608) weights of linears, and its own states
    replicated = two - 2 * (two - four)
    assert replicated >= 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) // 64
    assert {report.model.parameters for report in reports} == {reports[0].model.parameters}


@pytest.mark.parametrize(
    ("name", "instead"), [("paged_adamw_8bit", "adamw_torch_8bit"), ("lion_32bit", "adamw_torch_fused")]
)
def test_bitsandbytes_optimizers_do_not_support_dtensors(tmp_path: Path, name: str, instead: str) -> None:
    """torch: "Operator bitsandbytes.optimizer_update_32bit.default does not have a sharding strategy registered"."""
    keys = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
    report = report_of(tmp_path, 2, **keys, optimizer=name)
    (refusal,) = report.refusals
    assert (refusal.key, refusal.value, refusal.remedy) == ("optimizer", name, f"use {instead}")
    assert report.peak.allocated_bytes == report_of(tmp_path, 2, **keys, optimizer=instead).peak.allocated_bytes
    assert not report_of(tmp_path, 2, optimizer=name).refusals  # DDP


def test_nccl_is_only_in_nvidia_smi(tmp_path: Path) -> None:
    peak = report_of(tmp_path, 2).peak
    assert peak.nccl_bytes > 0
    assert peak.device_bytes == peak.reserved_bytes + peak.context_bytes + peak.nccl_bytes


def test_memory_that_fsdp2_offloads_is_on_the_host(tmp_path: Path) -> None:
    report = report_of(
        tmp_path, 8, fsdp_version=2, fsdp_config={"offload_params": True, "cpu_offload_pin_memory": False}
    )
    assert (report.resident.weights, report.resident.gradients, report.resident.optimizer) == (ROTARY, 0, 0)
    # not pinned, so exact sizes: bf16 shards and gradients, two bf16 states and a 4-byte counter for each tensor
    shards = 2 * PARAMETERS // 8
    assert (report.host.cpu.weights, report.host.cpu.gradients) == (shards, shards)
    assert report.host.cpu.optimizer == 2 * shards + 4 * NUM_TENSORS
    assert report.ranks[0].host_bytes == report.host.cpu.peak_bytes >= 4 * shards


def test_pinned_memory_is_allocated_in_powers_of_two(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, fsdp_version=2, fsdp_config={"offload_params": True})
    # a rank's bytes of a layer: q, o 32 x 32 / 8 x 2 = 256 each; k, v 128; gate, up, down 48 x 32 / 8 x 2 = 384, in 512;
    # two norms of 32 / 8 x 2 = 8. Of the root: embedding and head 96 x 32 / 8 x 2 = 768, in 1,024, and a norm
    pinned = 2 * (2 * 256 + 2 * 128 + 3 * 512 + 2 * 8) + 2 * 1024 + 8
    assert (report.host.cpu.weights, report.host.cpu.gradients) == (pinned, pinned)


def test_an_offloaded_gather_copies_the_shard_first(tmp_path: Path) -> None:
    """The copies are as large as the shards, in the stored dtype: fp32 adapters are cast on the GPU."""
    keys = {"fsdp_version": 2, "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    with_offload = report_of(tmp_path, 2, **keys, fsdp_config={"offload_params": True})
    without = report_of(tmp_path, 2, **keys, fsdp_config={"offload_params": False})
    assert with_offload.resident.adapters == 0 < without.resident.adapters
    assert with_offload.peak.allocated_bytes < without.peak.allocated_bytes


def test_loading_to_offloaded_shards_has_only_one_full_parameter(tmp_path: Path) -> None:
    options = {"offload_params": True, "cpu_ram_efficient_loading": True}
    report = report_of(tmp_path, 8, fsdp_version=2, fsdp_config=options)
    # the largest, an embedding of 96 x 32 in bf16, and its shard before it is copied to the host
    largest = 2 * 96 * 32
    assert report.phases["load"].allocated_bytes == largest + 1024  # its 768 bytes are two blocks
    whole = report_of(tmp_path, 8, fsdp_version=2, fsdp_config={"offload_params": True})
    assert whole.phases["load"].allocated_bytes > 2 * PARAMETERS


def test_ddp_writes_nothing_to_the_process_s_streams(tmp_path: Path) -> None:
    # torch's C++ code warns once in each process, not through Python's streams; torch is imported before this package,
    # as in a notebook
    model = write_tiny_model("llama", tmp_path / "llama")
    code = "import torch, axmem_trace\n"
    code += (
        f"config = {{'base_model': {str(model)!r}, 'sequence_len': 24, 'micro_batch_size': 1, 'learning_rate': 1e-4}}\n"
    )
    code += "print(axmem_trace.estimate(config, hub='never', num_gpus=2).peak.allocated_bytes > 0)"
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}


@pytest.mark.parametrize(
    ("keys", "resident"),
    [
        # axolotl's copy in bf16: whole under DDP, a part of it under FSDP2
        ({"rl": "dpo"}, 2 * PARAMETERS + ROTARY),
        ({"rl": "dpo", **FSDP2}, 2 * PARAMETERS // 2 + ROTARY),
        # TRL's own in fp32
        ({"rl": "kto", "remove_unused_columns": False, **FSDP2}, 4 * PARAMETERS // 2 + ROTARY),
        # the policy itself
        ({"rl": "dpo", "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, **FSDP2}, 0),
    ],
)
def test_only_fsdp_shards_the_reference(tmp_path: Path, keys: dict[str, Any], resident: int) -> None:
    report = report_of(tmp_path, 2, **keys)
    assert report.resident.reference == resident
    assert not [note for note in report.notes if note.kind == "not_modelled"]
    gathers = any("gathers the whole model" in note.text for note in report.notes)
    assert gathers is bool(resident and "fsdp_version" in keys)


def test_an_fsdp2_reference_is_loaded_in_full_and_then_sharded(tmp_path: Path) -> None:
    # fully_shard first moves the whole model to the GPU: 2 bytes for each parameter and the rotary tables, before the
    # policy. While it is sharded, the shards are added: half of it. Each of the 21 parameters, and each shard, needs
    # blocks of 512 bytes.
    fsdp = {"reshard_after_forward": True, "cpu_ram_efficient_loading": True}
    report = report_of(tmp_path, 2, rl="dpo", fsdp_version=2, fsdp_config=fsdp)
    whole, part = 2 * PARAMETERS, 2 * PARAMETERS // 2
    assert whole + ROTARY < report.phases["load"].buckets.reference <= whole + part + ROTARY + 2 * 21 * 512


def test_generation_with_an_adapter_fails_under_fsdp2(tmp_path: Path) -> None:
    # peft's `generate` calls the inner model, whose embedding is still sharded: torch refuses to look up plain ids in
    # it. (support/real_ranks.py would show it: "aten.embedding.default got mixed torch.Tensor and DTensor".)
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    keys = {"rl": "grpo", "micro_batch_size": 4, "trl": {"num_generations": 4, "max_completion_length": 8}, **FSDP2}
    assert any("the first generation fails" in each.reason for each in report_of(tmp_path, 2, **keys, **lora).refusals)
    assert not report_of(tmp_path, 2, **keys).refusals


def test_deepspeed_casts_the_reference_that_trl_loads_in_fp32(tmp_path: Path) -> None:
    # TRL's `prepare_deepspeed`: an engine of stage 0 with the bf16 of the run. 2 bytes a parameter on each rank, not 4.
    zero = {"deepspeed": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}}
    report = report_of(tmp_path, 2, rl="kto", remove_unused_columns=False, **zero)
    assert report.resident.reference == 2 * PARAMETERS + ROTARY


def zero3(**settings: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": 3, **settings}, "bf16": {"enabled": True}}}


DIVIDED: dict[str, dict[str, Any]] = {
    "dpo": {"rl": "dpo"},  # axolotl's copy, in bf16
    "kto": {"rl": "kto", "remove_unused_columns": False},  # TRL's own: fp32, which `zero.Init` casts
}


@pytest.mark.parametrize("keys", DIVIDED.values(), ids=DIVIDED)
@pytest.mark.parametrize("gpus", [2, 4])
def test_zero3_shards_the_reference(tmp_path: Path, keys: dict[str, Any], gpus: int) -> None:
    # nothing persists: 2 bytes a parameter, divided; every size is a multiple of the ranks. Rotary tables are whole
    settings = zero3(stage3_param_persistence_threshold=0, stage3_prefetch_bucket_size=0, overlap_comm=False)
    report = report_of(tmp_path, gpus, **keys, **settings)
    assert report.resident.reference == 2 * PARAMETERS // gpus + ROTARY
    assert not [note for note in report.notes if note.kind == "not_modelled"]


def test_auto_means_deepspeeds_defaults_for_the_reference(tmp_path: Path) -> None:
    # each parameter of the tiny model has less than 1e5 elements: after the first gather, the whole reference stays
    # gathered, in addition to its shards. "auto" for the policy is 10 x 32 elements: only its norms stay. DeepSpeed
    # begins to keep them when it knows the order of the modules, from the second forward.
    fixed = {"overlap_comm": False, "stage3_prefetch_bucket_size": 0}
    peaks = {
        value: report_of(tmp_path, 2, rl="dpo", **zero3(**fixed, stage3_param_persistence_threshold=value))
        for value in ("auto", 320)
    }
    matrices = PARAMETERS - 5 * 32
    for step, more in (("step_1", 0), ("step_2", 2 * matrices)):
        auto, few = peaks["auto"].phases[step], peaks[320].phases[step]
        assert (auto.allocated_bytes - few.allocated_bytes, auto.end_bytes - few.end_bytes) == (more, more)
    assert any("50,000,000 elements" in note.text for note in peaks["auto"].notes)
    assert not any("50,000,000 elements" in note.text for note in peaks[320].notes)


def test_adapters_need_no_second_model_with_zero3(tmp_path: Path) -> None:
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    assert report_of(tmp_path, 2, rl="dpo", **lora, **zero3()).resident.reference == 0


def test_a_second_zero3_engine_for_precomputed_references_is_reported(tmp_path: Path) -> None:
    # TRL 1.14.1 dpo_trainer.py `_precompute_ref_logps`: `prepare_deepspeed(self.model)` where there is no second model
    keys: dict[str, Any] = {"rl": "dpo", "precompute_ref_log_probs": True}
    lora: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}

    def missing(**more: Any) -> list[tuple[str, str]]:
        notes = report_of(tmp_path, 2, **keys, **more).notes
        return [(note.key, note.direction) for note in notes if note.kind == "not_modelled"]

    assert missing(**lora, **zero3()) == [("precompute_ref_log_probs", "more")]
    assert missing(**zero3()) == []
    assert missing(**lora, deepspeed={"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}) == []
