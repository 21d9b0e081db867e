"""ZeRO without DeepSpeed: partitions, buckets and reports, compared with arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_configs import make_rank_config

from axmem_trace import estimate
from axmem_trace.errors import ConfigError
from axmem_trace.parallel.zero.layout import Layout, Slice, elements_kept, joined, round_robin
from axmem_trace.report import Report

# the tiny llama: vocabulary 96, hidden 32, MLP 48, 2 layers, 4 heads of 8, 2 of them for keys and values
EMBEDDING = 96 * 32
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32
NORMS = 5 * 32
MATRICES = 2 * EMBEDDING + 2 * LAYER
"""The Trainer's first group, which has weight decay; the norms are the second group."""
PARAMETERS = MATRICES + NORMS  # 21,664
ROTARY = 2 * 4 * 4
"""The rotary table and its original: 4 fp32 frequencies each."""
GPUS = 4


def report_of(
    tmp_path: Path, stage: int = 2, *, gpus: int = GPUS, json: dict[str, Any] | None = None, **keys: Any
) -> Report:
    settings = {"stage": stage, "reduce_bucket_size": 4000, "overlap_comm": False, **(json or {})}
    file = {"zero_optimization": settings, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto"}
    return estimate(make_rank_config(tmp_path, deepspeed=file, **keys), num_gpus=gpus, hub="never")


def test_partitions_are_equal_and_split_parameters() -> None:
    # 10 + 7 + 3 = 20 elements for 3 ranks: a multiple of 2 x 3, 24; 8 each
    layout = Layout((10, 7, 3), 3)
    assert (layout.elements, layout.partition_elements) == (24, 8)
    assert layout.slices(0) == (Slice(0, 0, start=0, offset=0, elements=8),)
    # the last 2 of the first, then 6 of the second
    assert layout.slices(1) == (Slice(0, 1, 8, 0, 2), Slice(1, 1, 0, 2, 6))
    # 1 of the second, 3 of the third, 4 of padding
    assert layout.slices(2) == (Slice(1, 2, 6, 0, 1), Slice(2, 2, 0, 1, 3))


def test_neighbours_are_on_different_ranks() -> None:
    assert round_robin(7, 3) == (0, 3, 6, 1, 4, 2, 5)


def test_neighbouring_slices_of_one_owner_are_reduced_together() -> None:
    slices = [Slice(2, 1, 0, 0, 5), Slice(1, 1, 0, 0, 3), Slice(1, 0, 3, 0, 4), Slice(0, 0, 0, 0, 9)]
    assert joined(slices) == [(1, 8), (0, 13)]


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_are_whole_and_states_are_sharded(tmp_path: Path, stage: int) -> None:
    report = report_of(tmp_path, stage)
    # bf16 weights, in two flat buffers; 21,504 and 160 are multiples of 2 x 4: no padding
    assert report.resident.weights == 2 * PARAMETERS + ROTARY
    # fp32 copy and two states of a quarter; two step counters
    assert report.resident.optimizer == 3 * 4 * PARAMETERS // GPUS + 2 * 4
    assert report.model.parameters == PARAMETERS
    assert f"{GPUS} GPUs, DeepSpeed ZeRO-{stage}" in report.run["ranks"]


def test_loading_has_a_second_copy_for_a_short_time(tmp_path: Path) -> None:
    load = report_of(tmp_path).phases["load"]
    # all weights, and the flat buffer of the first group, before its parameters become views of it
    assert load.allocated_bytes >= 2 * PARAMETERS + 2 * MATRICES
    # then weights and fp32 copies; what is not a multiple of 512 is rounded up
    assert 0 <= load.end_bytes - (2 * PARAMETERS + 4 * PARAMETERS // GPUS) <= 5 * 512


@pytest.mark.parametrize(("overlaps", "buckets"), [(False, 1), (True, 2)])
def test_buckets_have_the_configured_size_with_any_trainable_parameters(
    tmp_path: Path, overlaps: bool, buckets: int
) -> None:
    lora: dict[str, Any] = {"adapter": "lora", "lora_r": 2, "lora_alpha": 2, "lora_target_linear": True}
    small, large = (
        report_of(tmp_path, json={"reduce_bucket_size": size, "overlap_comm": overlaps}, **lora)
        .phases["step_1"]
        .phases["backward"]
        .allocated_bytes
        for size in (100_096, 200_192)
    )
    # bf16, 100,096 more elements in each bucket
    assert large - small == buckets * 2 * 100_096


def test_zero1_keeps_its_buckets_until_the_last_micro_batch(tmp_path: Path) -> None:
    def forward(stage: int, size: int) -> int:
        json = {"reduce_bucket_size": size, "overlap_comm": True}
        report = report_of(tmp_path, stage, json=json, gradient_accumulation_steps=2)
        return report.phases["step_2"].phases["forward"].allocated_bytes

    assert forward(1, 200_192) - forward(1, 100_096) == 2 * 2 * 100_096
    assert forward(2, 200_192) == forward(2, 100_096)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_s_own_tiled_mlp_is_not_modelled(tmp_path: Path, stage: int) -> None:
    """axolotl 0.21 `monkeypatch/tiled_mlp/patch.py` uses `DeepSpeedTiledMLP` in this case; it needs less memory than
    untiled MLPs."""
    tiled = report_of(tmp_path, stage=stage, tiled_mlp=True)
    whole = report_of(tmp_path, stage=stage)
    assert tiled.peak.allocated_bytes == whole.peak.allocated_bytes
    (note,) = [note for note in tiled.notes if note.key == "tiled_mlp"]
    assert (note.kind, note.direction) == ("not_modelled", "less")


def test_an_offloaded_optimizer_is_on_the_host(tmp_path: Path) -> None:
    report = report_of(tmp_path, json={"offload_optimizer": {"device": "cpu"}})
    assert report.resident.optimizer == 0
    # fp32: copy, gradient, two states; bf16: the copy that goes back, one of the largest parameter, and when it is saved
    # the whole model
    host = 4 * 4 * PARAMETERS // GPUS + 2 * PARAMETERS // GPUS + 2 * EMBEDDING + 2 * PARAMETERS
    assert 0 <= report.host.cpu.peak_bytes - host <= 64  # and step counters
    pinned = report_of(tmp_path, json={"offload_optimizer": {"device": "cpu", "pin_memory": True}})
    assert pinned.host.cpu.peak_bytes > report.host.cpu.peak_bytes  # powers of two


def test_a_rank_keeps_whole_gradients() -> None:
    # 8 elements each: rank 0 has a part of the first, rank 1 of the first and the second, rank 2 of the second and the
    # third
    assert elements_kept(Layout((10, 7, 3), 3)) == [10, 17, 10]


def test_optimizers_that_need_matrices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one flat tensor"):
        report_of(tmp_path, optimizer="galore_adamw", optim_target_modules=["q_proj"])


def test_there_is_no_autocast_and_no_fp32_copy_of_the_logits(tmp_path: Path) -> None:
    assert "no autocast" in report_of(tmp_path).run["precision"]


# ZeRO-3: every tensor of the tiny llama has a number of elements that 4 divides


def report_3(tmp_path: Path, json: dict[str, Any] | None = None, **keys: Any) -> Report:
    settings = {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 1024, **(json or {})}
    return report_of(tmp_path, 3, json=settings, **keys)


def test_zero3_shards_weights_gradients_and_states(tmp_path: Path) -> None:
    report = report_3(tmp_path)
    assert report.resident.weights == 2 * PARAMETERS // GPUS + ROTARY
    # fp32 copy and two states; two groups, each with a step counter
    assert report.resident.optimizer == 3 * 4 * PARAMETERS // GPUS + 2 * 4
    # bf16 sums, always there, and the fp32 gradient of the first group while it steps
    assert report.resident.gradients == 2 * PARAMETERS // GPUS + 4 * MATRICES // GPUS
    assert report.model.parameters == PARAMETERS
    assert f"{GPUS} GPUs, DeepSpeed ZeRO-3" in report.run["ranks"]


def test_zero3_loads_module_by_module(tmp_path: Path) -> None:
    load = report_3(tmp_path).phases["load"]
    # parts in bf16 and in fp32, sums in bf16, the bucket of 1,024; blocks of 512 bytes for 21 tensors
    end = 2 * PARAMETERS // GPUS + 4 * PARAMETERS // GPUS + 2 * PARAMETERS // GPUS + 2 * 1024
    assert 0 <= load.end_bytes - end <= 24 * 512
    # never the whole model; the fp32 copy of the first group is copied again
    assert 0 <= load.allocated_bytes - 2 * PARAMETERS // GPUS - 2 * 4 * MATRICES // GPUS <= 24 * 512


def test_small_parameters_stay_whole(tmp_path: Path) -> None:
    def at_end(threshold: int) -> int:
        json = {"stage3_param_persistence_threshold": threshold}
        return report_3(tmp_path, json).phases["step_1"].phases["optimizer"].end_bytes

    # five norms of 32 in bf16, in blocks of 512 bytes
    assert at_end(32) - at_end(0) == 5 * 512
    # k and v too: 16 x 32 in each layer, 1,024 bytes each
    assert at_end(512) - at_end(32) == 4 * 1024


def test_prefetched_parameters_are_whole_at_the_same_time(tmp_path: Path) -> None:
    def forward(**json: Any) -> int:
        return report_3(tmp_path, json).phases["step_2"].phases["forward"].allocated_bytes

    ahead = forward(stage3_prefetch_bucket_size=1_000_000, stage3_max_live_parameters=1_000_000)
    alone = forward(stage3_prefetch_bucket_size=0, max_live_parameters=0, max_reuse_distance=0)
    # all weights in bf16, against those of one module at a time, at most an embedding
    assert ahead - alone >= 2 * (PARAMETERS - EMBEDDING)


def test_the_heads_gradient_is_copied_before_it_is_scattered(tmp_path: Path) -> None:
    """The loss's backward ends with the head: its weight, its gradient, and a bucket into which the gradient does not
    fit."""
    small = report_3(tmp_path).phases["step_1"].phases["backward"]
    assert small.allocated_bytes >= small.end_bytes + 2 * 2 * EMBEDDING


def test_offloaded_parameters_are_on_the_host(tmp_path: Path) -> None:
    pinned = {"device": "cpu", "pin_memory": True}
    params = report_3(tmp_path, {"offload_param": pinned})
    assert params.resident.weights == ROTARY
    assert params.resident.optimizer == report_3(tmp_path).resident.optimizer
    # pinned blocks are powers of two. First one for each part: embedding and head 1,536 bytes -> 2,048, q and o 512,
    # k and v 256, gate, up and down 768 -> 1,024, norms 16
    parts = 2 * 2048 + 2 * (2 * 512 + 2 * 256 + 3 * 1024) + 5 * 16
    # then one for each group: 10,752 and 80 bytes
    assert params.host.cpu.weights == parts + 16384 + 128
    every = report_3(tmp_path, {"offload_param": pinned, "offload_optimizer": pinned})
    assert every.resident.optimizer == every.resident.weights - ROTARY == 0
    assert every.host.cpu.optimizer >= 3 * 4 * PARAMETERS // GPUS


def test_adapters_are_fp32_if_the_base_is_sharded_while_loading(tmp_path: Path) -> None:
    lora: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 4, "lora_target_modules": ["q_proj"]}
    kernels: dict[str, Any] = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    report = report_3(tmp_path, **lora, **kernels)
    # A and B of two layers: 4 x 32 each; a quarter, fp32
    assert report.resident.adapters == 4 * (2 * 2 * 4 * 32) // GPUS
    assert report.resident.weights == 2 * PARAMETERS // GPUS + ROTARY


def test_a_quantised_base_is_whole_while_loading(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "adapter": "qlora",
        "load_in_4bit": True,
        "lora_r": 4,
        "lora_alpha": 4,
        "lora_target_linear": True,
    }
    report = report_3(tmp_path, **keys)
    # embedding and head in bf16, the packed linears, half a byte a weight
    assert report.phases["load"].allocated_bytes >= 2 * 2 * EMBEDDING + LAYER
    assert report.resident.weights < report.phases["load"].allocated_bytes
    assert any(note.kind == "warning" and "whole quantised model" in note.text for note in report.notes)


def test_all_replacements_of_zero_are_restored(tmp_path: Path) -> None:
    linear = torch.nn.functional.linear
    report_3(tmp_path)
    assert torch.nn.functional.linear is linear


def test_memory_for_reading_weights_on_the_host_is_reported(tmp_path: Path) -> None:
    for stage in (2, 3):
        (note,) = [each for each in report_of(tmp_path, stage).notes if each.key == "host.loading"]
        assert note.bytes == 2 * PARAMETERS


def test_gathered_weights_are_named(tmp_path: Path) -> None:
    json = {"stage3_prefetch_bucket_size": 1_000_000, "stage3_max_live_parameters": 1_000_000}
    (gathered,) = [each for each in report_3(tmp_path, json).holders if each.name == "gathered parameters"]
    assert gathered.bytes >= 2 * EMBEDDING
