"""ZeRO-1 and 2 without DeepSpeed: partitions, buckets and reports, by arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.errors import ConfigError
from axmem_trace.parallel.zero.layout import Layout, Slice, elements_kept, joined, round_robin
from axmem_trace.report import Report

# the tiny llama: vocabulary 96, hidden 32, MLP 48, 2 layers, 4 heads of 8, 2 of them for keys and values
EMBEDDING = 96 * 32
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32
NORMS = 5 * 32
MATRICES = 2 * EMBEDDING + 2 * LAYER
"""The Trainer's first group, which decays; the norms are the second."""
PARAMETERS = MATRICES + NORMS  # 21,664
ROTARY = 2 * 4 * 4
"""The rotary table and its original: 4 fp32 frequencies each."""
GPUS = 4


def report_of(
    tmp_path: Path, stage: int = 2, *, gpus: int = GPUS, json: dict[str, Any] | None = None, **keys: Any
) -> Report:
    settings = {"stage": stage, "reduce_bucket_size": 4000, "overlap_comm": False, **(json or {})}
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"), "sequence_len": 24, "micro_batch_size": 2,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-4, "optimizer": "adamw_torch_fused", "bf16": True,
        "attn_implementation": "flash_attention_2", "datasets": [{"path": "x", "type": "alpaca"}],
        "deepspeed": {"zero_optimization": settings, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto"},
        "pad_to_sequence_len": True, **keys,
    }  # fmt: skip
    return estimate(config, num_gpus=gpus, hub="never")


def test_partitions_are_equal_and_cut_parameters() -> None:
    # 10 + 7 + 3 = 20 elements for 3 ranks: a multiple of 2 x 3, 24; 8 each
    layout = Layout((10, 7, 3), 3)
    assert (layout.elements, layout.partition_elements) == (24, 8)
    assert layout.slices(0) == (Slice(0, 0, start=0, offset=0, elements=8),)
    # the last 2 of the first, then 6 of the second
    assert layout.slices(1) == (Slice(0, 1, 8, 0, 2), Slice(1, 1, 0, 2, 6))
    # 1 of the second, 3 of the third, 4 of padding
    assert layout.slices(2) == (Slice(1, 2, 6, 0, 1), Slice(2, 2, 0, 1, 3))


def test_neighbours_go_round_the_ranks() -> None:
    assert round_robin(7, 3) == (0, 3, 6, 1, 4, 2, 5)


def test_neighbouring_slices_of_one_owner_are_reduced_together() -> None:
    slices = [Slice(2, 1, 0, 0, 5), Slice(1, 1, 0, 0, 3), Slice(1, 0, 3, 0, 4), Slice(0, 0, 0, 0, 9)]
    assert joined(slices) == [(1, 8), (0, 13)]


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_are_whole_and_states_are_divided(tmp_path: Path, stage: int) -> None:
    report = report_of(tmp_path, stage)
    # bf16 weights, in two flat buffers; 21,504 and 160 are multiples of 2 x 4: no padding
    assert report.resident.weights == 2 * PARAMETERS + ROTARY
    # fp32 copy and two states of a quarter; two step counters
    assert report.resident.optimizer == 3 * 4 * PARAMETERS // GPUS + 2 * 4
    assert report.model.parameters == PARAMETERS
    assert f"{GPUS} GPUs, DeepSpeed ZeRO-{stage}" in report.run["ranks"]


def test_loading_holds_a_second_copy_for_a_moment(tmp_path: Path) -> None:
    load = report_of(tmp_path).phases["load"]
    # all weights, and the flat buffer of the first group, before its parameters become views of it
    assert load.allocated_bytes >= 2 * PARAMETERS + 2 * MATRICES
    # then weights and fp32 copies; what is not a multiple of 512 is rounded up
    assert 0 <= load.end_bytes - (2 * PARAMETERS + 4 * PARAMETERS // GPUS) <= 5 * 512


@pytest.mark.parametrize(("overlaps", "buckets"), [(False, 1), (True, 2)])
def test_buckets_are_as_large_as_asked_whatever_is_trained(tmp_path: Path, overlaps: bool, buckets: int) -> None:
    lora: dict[str, Any] = {"adapter": "lora", "lora_r": 2, "lora_alpha": 2, "lora_target_linear": True}
    small, large = (
        report_of(tmp_path, json={"reduce_bucket_size": size, "overlap_comm": overlaps}, **lora)
        .phases["step_1"].phases["backward"].allocated_bytes
        for size in (100_096, 200_192)
    )  # fmt: skip
    # bf16, 100,096 more elements in each bucket
    assert large - small == buckets * 2 * 100_096


def test_zero1_keeps_its_buckets_until_the_last_micro_batch(tmp_path: Path) -> None:
    def forward(stage: int, size: int) -> int:
        json = {"reduce_bucket_size": size, "overlap_comm": True}
        report = report_of(tmp_path, stage, json=json, gradient_accumulation_steps=2)
        return report.phases["step_2"].phases["forward"].allocated_bytes

    assert forward(1, 200_192) - forward(1, 100_096) == 2 * 2 * 100_096
    assert forward(2, 200_192) == forward(2, 100_096)


def test_an_offloaded_optimizer_is_on_the_host(tmp_path: Path) -> None:
    report = report_of(tmp_path, json={"offload_optimizer": {"device": "cpu"}})
    assert report.resident.optimizer == 0
    # fp32: copy, gradient, two states; bf16: the copy that goes back, and one of the largest parameter
    host = 4 * 4 * PARAMETERS // GPUS + 2 * PARAMETERS // GPUS + 2 * EMBEDDING
    assert 0 <= report.host.cpu.peak_bytes - host <= 64  # and step counters
    pinned = report_of(tmp_path, json={"offload_optimizer": {"device": "cpu", "pin_memory": True}})
    assert pinned.host.cpu.peak_bytes > report.host.cpu.peak_bytes  # powers of two


def test_a_rank_keeps_whole_gradients() -> None:
    # 8 elements each: rank 0 touches the first, rank 1 the first and the second, rank 2 the second and the third
    assert elements_kept(Layout((10, 7, 3), 3)) == [10, 17, 10]


def test_optimizers_that_need_matrices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one flat tensor"):
        report_of(tmp_path, optimizer="galore_adamw", optim_target_modules=["q_proj"])


def test_there_is_no_autocast_and_no_fp32_copy_of_the_logits(tmp_path: Path) -> None:
    assert "no autocast" in report_of(tmp_path).run["precision"]
