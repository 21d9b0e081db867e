"""Ranks with shards of different sizes, and their figures in the report, compared with arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.parallel.ranks import RankGroup, choose_recorded, rows_of_shard
from axmem_trace.report import Report
from axmem_trace.report.ranks import name_ranks
from axmem_trace.units import GIB

FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}


def report_of(directory: Path, gpus: int, *, axolotl: str = "", gpu: str = "", **keys: Any) -> Report:
    """The tiny llama with an odd vocabulary of 97: hidden size 32, everything else a multiple of 8."""
    config = {
        "base_model": write_tiny_model("llama", directory / "llama", vocab_size=97),
        "sequence_len": 24,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "optimizer": "adamw_torch_fused",
        "attn_implementation": "flash_attention_2",
        "pad_to_sequence_len": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return estimate(config, num_gpus=gpus, gpu=gpu, axolotl=axolotl, hub="never")


def test_the_last_rank_has_fewer_rows_of_an_odd_vocabulary(tmp_path: Path) -> None:
    first, last = report_of(tmp_path, 8, **FSDP2).ranks
    assert (first.ranks, first.count, last.ranks, last.count) == ("0-6", 7, "7", 1)
    # 97 rows are 7 * 13 + 6. Of embedding and head, two states each: 13 * 32 * 2 = 832 bytes are two blocks of 512,
    # 6 * 32 * 2 = 384 bytes are one. The shards themselves are padded to 13 rows on every rank.
    assert first.allocated_bytes - last.allocated_bytes == 2 * 2 * 512
    assert first.worst
    assert not last.worst


def test_ranks_without_a_row_of_an_adapter(tmp_path: Path) -> None:
    """LoRA with rank 4 on 8 GPUs: A has 4 rows, so the GPUs 4 to 7 have no row of any A; B is sharded evenly."""
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj"]}
    first, last = report_of(tmp_path, 8, **FSDP2, **lora).ranks
    assert (first.ranks, last.ranks) == ("0-3", "4-7")
    # two layers, two fp32 states of A, one row of 32 each: 128 bytes are a block; no row is no block
    assert first.allocated_bytes - last.allocated_bytes == 2 * 2 * 512


def test_equal_ranks_are_one_row(tmp_path: Path) -> None:
    for keys in ({}, {**FSDP2, "base_model": write_tiny_model("llama", tmp_path / "even")}):
        (row,) = report_of(tmp_path, 4, **keys).ranks
        assert (row.ranks, row.count, row.worst, row.basis) == ("0-3", 4, True, "recorded")


def test_the_rank_that_reads_the_weights_is_a_separate_group(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        4,
        fsdp_version=2,
        fsdp_config={"cpu_ram_efficient_loading": True},
        base_model=write_tiny_model("llama", tmp_path / "even"),
    )
    assert [use.ranks for use in report.ranks] == ["0", "1-3"]


def test_copies_of_the_shards_have_equal_ranks(tmp_path: Path) -> None:
    """97 rows on 2 shards: 49 and 48. The mesh is row by row: ranks 0 and 2 have the first shard."""
    report = report_of(tmp_path, 4, **FSDP2, dp_replicate_size=2, dp_shard_size=2)
    assert [use.ranks for use in report.ranks] == ["0, 2", "1, 3"]


def test_fsdp1_s_many_different_ranks_are_all_recorded(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    recorded = report_of(tmp_path, 8, axolotl="0.19.0", **keys).ranks
    assert [use.ranks for use in recorded] == [str(rank) for rank in range(8)]
    assert {use.basis for use in recorded} == {"recorded"}


def test_ranks_that_were_not_recorded_have_the_figures_of_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axmem_trace.parallel.ranks.MAX_STEPPED", 4)
    keys: dict[str, Any] = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    *recorded, rest = report_of(tmp_path, 8, axolotl="0.19.0", **keys).ranks
    assert {use.basis for use in recorded} == {"recorded"}
    assert (len(recorded), rest.count, rest.basis) == (4, 4, "at most")
    assert rest.device_bytes == max(use.device_bytes for use in recorded)


def test_the_verdict_is_for_the_worst_rank(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, gpu="24GiB", **FSDP2)
    assert report.headroom_bytes == 24 * GIB - max(use.device_bytes for use in report.ranks)
    assert report.ranks[0].device_bytes == report.peak.device_bytes


def test_what_is_sharded_replicated_and_gathered(tmp_path: Path) -> None:
    sharded = report_of(tmp_path, 8, **FSDP2)
    rows = {row.name: row for row in sharded.division}
    # 21,664 parameters with 96 rows, 64 more with 97: 2 * 32. 13 rows of 8 parts are 104
    parts = (21_664 - 2 * 96 * 32) // 8 + 2 * 13 * 32
    assert rows["weights"].sharded_bytes == 2 * parts
    assert rows["weights"].replicated_bytes == 2 * 4 * 4  # the rotary table and its original, fp32
    assert rows["optimizer"].replicated_bytes == rows["gradients"].replicated_bytes == 0
    assert rows["gathered parameters"].gathered_bytes > 2 * 2 * 97 * 32
    layer = next(row for row in sharded.modules if row.name == "model.layers.0.mlp.up_proj")
    assert layer.sharded_bytes == layer.weight_bytes == 2 * 48 * 32 // 8
    copied = {row.name: row for row in report_of(tmp_path, 2).division}
    assert copied["weights"].sharded_bytes == copied["optimizer"].sharded_bytes == 0
    assert copied["weights"].replicated_bytes == 2 * (21_664 + 2 * 32) + 2 * 4 * 4


@pytest.mark.parametrize("keys", [{}, FSDP2])
def test_a_machine_with_a_gpu_gives_the_same_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """On such a machine, torch's Adam checks whether the current stream records a CUDA graph."""
    import torch

    without = report_of(tmp_path, 2, **keys)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    assert report_of(tmp_path, 2, **keys).peak == without.peak


def test_one_gpu_has_no_ranks(tmp_path: Path) -> None:
    report = report_of(tmp_path, 1)
    assert (report.ranks, report.division) == ((), ())
    assert "Ranks" not in str(report)


def test_ranks_are_in_the_json(tmp_path: Path) -> None:
    report = report_of(tmp_path, 8, **FSDP2)
    assert [row["ranks"] for row in json.loads(report.to_json())["ranks"]] == ["0-6", "7"]
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(("rows", "parts"), [(97, 8), (3, 4), (8, 8), (5, 4), (1, 2)])
def test_rows_of_shards_are_those_of_torch(rows: int, parts: int) -> None:
    import torch

    chunks = [len(chunk) for chunk in torch.chunk(torch.empty(rows), parts)]
    assert [rows_of_shard(rows, parts, shard) for shard in range(parts)] == chunks + [0] * (parts - len(chunks))


def test_the_largest_group_is_recorded() -> None:
    groups = [RankGroup((rank,), nbytes) for rank, nbytes in enumerate((5, 1, 9, 2, 3))]
    assert [group.ranks[0] for group in choose_recorded(groups) if group.recorded] == [0, 2, 4]


def test_names_of_ranks() -> None:
    assert name_ranks([0]) == "0"
    assert name_ranks([0, 2, 3, 4, 9]) == "0, 2-4, 9"
