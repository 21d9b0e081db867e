"""Compares tensor parallelism on meta with real processes on the CPU, which communicate by gloo, allocation by
allocation. And the memory of each rank, compared with arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rank_configs import make_rank_config
from support.real_ranks import Case, assert_same, record_for_real, record_on_meta, tiny_run
from support.tiny_models import write_tiny_model
from transformers.distributed import tensor_parallel, utils

from axmem_trace import estimate
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Ledger
from axmem_trace.report import Report

pytestmark = pytest.mark.skipif(
    not hasattr(utils, "TransformersDeviceMesh"), reason="axolotl 0.20 and later need a newer transformers for it"
)
whole_embedding = pytest.mark.skipif(
    hasattr(tensor_parallel, "EmbeddingParallel"), reason="transformers 5.24 divides the embedding too"
)
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "llama": (2, "llama", {}),
    "llama, accumulating": (2, "llama", {"gradient_accumulation_steps": 3}),
    "llama, checkpointed": (2, "llama", {"gradient_checkpointing": True}),
    "norms of each head": (2, "qwen3", {"gradient_accumulation_steps": 2}),
    "fused linears": (2, "phi3", {}),
    "experts": (2, "qwen3_moe", {}),
    "with FSDP2": (4, "llama", FSDP2),
    "with FSDP2, accumulating": (4, "qwen3", {**FSDP2, "gradient_accumulation_steps": 2}),
}


def _cases(folder: Path, ranks: int) -> dict[str, Case]:
    common = {**tiny_run(folder), "tensor_parallel_size": 2, "save_only_model": True}
    return {
        # grouped products need rows of 16 bytes on each rank
        name: Case(
            {**common, "base_model": write_tiny_model(family, folder / family, moe_intermediate_size=32), **keys}
        )
        for name, (count, family, keys) in CASES.items()
        if count == ranks
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, list[Ledger]]]:
    """Every case, with its records by rank: all cases for two ranks in the same two processes, the others in four."""
    found: dict[str, tuple[Case, list[Ledger]]] = {}
    for ranks in (2, 4):
        cases = _cases(tmp_path_factory.mktemp("models"), ranks)
        records = record_for_real(list(cases.values()), ranks)
        found.update({name: (case, real) for (name, case), real in zip(cases.items(), records, strict=True)})
    return found


@pytest.mark.parametrize("name", CASES)
def test_meta_allocates_the_same_as_real_ranks(name: str, recorded: dict[str, tuple[Case, list[Ledger]]]) -> None:
    case, real = recorded[name]
    for rank in (0, len(real) - 1):
        # a norm of each head has 16 weights in bf16
        assert_same(record_on_meta(case, len(real), rank=rank), real[rank], summed_bytes=32)


# the tiny llama, as in test_many_gpu_reports.py. Divided: q 32 x 32, k and v 16 x 32, o 32 x 32, gate and up 48 x 32, down
# 32 x 48 of two layers, and the head 96 x 32. Whole: the embedding 96 x 32, and five norms of 32
DIVIDED = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) + 96 * 32
WHOLE = 96 * 32 + 5 * 32
ROTARY = 2 * 4 * 4


def report_of(
    directory: Path, gpus: int, *, family: str = "llama", axolotl: str = "", gpu: str = "", **keys: Any
) -> Report:
    config = make_rank_config(directory, family, **{"save_only_model": True, **keys})
    return estimate(config, num_gpus=gpus, axolotl=axolotl, gpu=gpu, hub="never")


@whole_embedding
@pytest.mark.parametrize("gpus", [2, 4])
def test_each_rank_has_the_full_embedding_and_norms(tmp_path: Path, gpus: int) -> None:
    # 2 KV heads are not enough for 4 ranks: k and v would be split inside a head
    report = report_of(tmp_path, 2, tensor_parallel_size=2) if gpus == 2 else None
    if report is None:
        model = write_tiny_model("llama", tmp_path / "more heads", num_key_value_heads=4)
        report = report_of(tmp_path, 4, tensor_parallel_size=4, base_model=model)
    divided = DIVIDED + (2 * 2 * 16 * 32 if gpus == 4 else 0)  # k and v are 32 x 32
    assert report.resident.weights == 2 * (divided // gpus + WHOLE) + ROTARY
    assert report.resident.gradients == 2 * (divided // gpus + WHOLE)
    rows = {row.name: (row.sharded_bytes, row.replicated_bytes) for row in report.division}
    assert rows["weights"] == (2 * divided // gpus, 2 * WHOLE + ROTARY)
    assert rows["gradients"] == (2 * divided // gpus, 2 * WHOLE)
    assert f"tensor parallelism of {gpus}" in report.run["ranks"]
    assert [use.ranks for use in report.ranks] == [f"0-{gpus - 1}"]
    assert not report.refusals
    assert not [note for note in report.notes if note.kind == "not_modelled"]


@whole_embedding
def test_fsdp2_shards_all_parameters_further(tmp_path: Path) -> None:
    report = report_of(tmp_path, 4, tensor_parallel_size=2, **FSDP2)
    # linears: halves of rows or columns, each divided by two; embedding and norms by two
    assert report.resident.weights == 2 * (DIVIDED // 4 + WHOLE // 2) + ROTARY
    assert report.resident.gradients == 2 * (DIVIDED // 4 + WHOLE // 2)
    assert "no autocast" in report.run["precision"]
    assert "tensor parallelism of 2 x FSDP2, 2 shards" in report.run["ranks"]
    # transformers does so without an fsdp_config too; then the forward is in autocast, as the Trainer's is
    alone = report_of(tmp_path, 4, tensor_parallel_size=2)
    assert (alone.resident.weights, alone.resident.gradients) == (report.resident.weights, report.resident.gradients)
    assert "autocast bfloat16" in alone.run["precision"]


def test_each_rank_has_the_logits_of_the_full_vocabulary(tmp_path: Path) -> None:
    """48 tokens and a large vocabulary of 4096 tokens, so that only logits matter. At the loss with autocast, there are
    bf16 logits, their fp32 copy for the loss, and the fp32 copy of the outputs. None of them is sharded."""
    model = write_tiny_model("llama", tmp_path / "wide", vocab_size=4096)
    alone, divided = (report_of(tmp_path, gpus, base_model=model, tensor_parallel_size=gpus) for gpus in (1, 2))
    logits = 2 * 24 * 4096
    kept = [report.phases["step_1"].phases["forward"].buckets.activations for report in (alone, divided)]
    assert min(kept) > 4 * logits
    assert abs(kept[0] - kept[1]) < logits  # less than half of the bf16 logits


@pytest.mark.parametrize(
    ("gpus", "keys", "words"),
    [
        (3, {"tensor_parallel_size": 2}, "has 3 GPUs"),
        (1, {"tensor_parallel_size": 2}, "has 1 GPU"),
        (4, {"tensor_parallel_size": 2, "dp_shard_size": 4, **FSDP2}, "2 x 4"),
        (2, {"tensor_parallel_size": 2, "adapter": "lora", "lora_r": 4, "lora_target_linear": True}, "with an adapter"),
        (2, {"tensor_parallel_size": 2, "rl": "dpo"}, "not modelled"),
        (4, {"tensor_parallel_size": 2, "attn_implementation": "sdpa"}, "several dtypes in a layer"),
    ],
)
def test_models_that_cannot_be_sharded_have_no_figures(
    tmp_path: Path, gpus: int, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        report_of(tmp_path, gpus, **keys)


def test_a_model_without_a_plan_has_no_figures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tp_plan for FalconForCausalLM"):
        report_of(tmp_path, 2, family="falcon", tensor_parallel_size=2)


@whole_embedding
def test_a_vocabulary_that_does_not_divide_has_no_figures(tmp_path: Path) -> None:
    model = write_tiny_model("llama", tmp_path / "odd", vocab_size=97)
    with pytest.raises(ConfigError, match="must be divisible"):
        report_of(tmp_path, 2, base_model=model, tensor_parallel_size=2)


def test_refused_combinations_have_figures(tmp_path: Path) -> None:
    unsaved = report_of(tmp_path, 2, tensor_parallel_size=2, save_only_model=False)
    assert any("save" in each.reason for each in unsaved.refusals)
    older = report_of(tmp_path, 2, tensor_parallel_size=2, axolotl="0.19.0")
    assert any("refuses to clip" in each.reason for each in older.refusals)
    assert older.resident == unsaved.resident


def test_tensor_parallelism_of_deepspeed_is_reported_as_not_modelled(tmp_path: Path) -> None:
    zero = {"deepspeed": {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}}
    report = report_of(tmp_path, 2, tensor_parallel_size=2, **zero)
    missing = [(note.key, note.direction) for note in report.notes if note.kind == "not_modelled"]
    assert ("tensor_parallel_size", "less") in missing


def test_cut_cross_entropy_of_a_sharded_head_is_reported_as_not_modelled(tmp_path: Path) -> None:
    plugin = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
    report = report_of(tmp_path, 2, tensor_parallel_size=2, plugins=[plugin], cut_cross_entropy=True)
    missing = [(note.key, note.direction) for note in report.notes if note.kind == "not_modelled"]
    assert missing == [("cut_cross_entropy", "either")]


def test_evaluation_runs_with_shards(tmp_path: Path) -> None:
    """Without gradients, transformers' linear layers use this rank's shard directly, without a DTensor."""
    report = report_of(tmp_path, 2, tensor_parallel_size=2, val_set_size=0.1, eval_steps=10)
    evaluation = report.phases["eval"]
    # at least bf16 logits of 48 tokens and all 96 words
    assert evaluation.allocated_bytes > report.resident.weights + 2 * 48 * 96
