"""Several estimates in one process: each report equals that of another process in which every layer was traced.

The second short model is omitted only if the number of tokens is the only difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.folded_runs import LORA, make_config, report_of, unfolded_reports

from axmem_trace import Session
from axmem_trace.training import checked_folds, kept_runs, layer_folding
from axmem_trace.training.checked_folds import checks_left_out

pytestmark = pytest.mark.usefixtures("short_models_fold")

QUESTIONS: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("first", {}, False),
    ("longer rows", {"sequence_len": 6144}, True),
    ("padded rows", {"sequence_len": 4000}, False),  # not a multiple of 64: the mask is not all ones
    ("three rows", {"micro_batch_size": 3}, False),  # the labels of several rows are copied
    ("three longer rows", {"sequence_len": 6144, "micro_batch_size": 3}, True),
    ("another rank, longer", {"lora_r": 6, "sequence_len": 6144}, False),
    ("no checkpointing", {"gradient_checkpointing": False}, False),
    ("first again", {}, True),
)
"""Estimates in this order; the last field says whether the check of an earlier one is used."""


LIKE_THE_FIRST: dict[str, tuple[dict[str, Any], int]] = {
    "another rank": ({"lora_r": 6}, 1),
    "a smaller micro batch": ({"micro_batch_size": 1, "gradient_accumulation_steps": 4}, 1),
    "a fused loss": ({"chunked_cross_entropy": True}, 1),
    "parts of the MLP": ({"tiled_mlp": True}, 1),
    "liger layers": ({"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rms_norm": True}, 1),
    "other weights train": ({"lora_target_linear": False, "lora_target_modules": ["q_proj"]}, 2),
    "another optimizer": ({"optimizer": "adamw_bnb_8bit", "max_grad_norm": 0}, 1),
}
"""Changes of the first one, and how many models are traced if its check is enough."""


@pytest.fixture
def num_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many models each `trace_run` traced."""
    counts: list[int] = []
    original, trace = layer_folding.trace_run, layer_folding._trace

    def begin(*args: Any, **kwargs: Any) -> Any:
        counts.append(0)
        return original(*args, **kwargs)

    def count(*args: Any, **kwargs: Any) -> Any:
        counts[-1] += 1
        return trace(*args, **kwargs)

    monkeypatch.setattr(layer_folding, "trace_run", begin)
    monkeypatch.setattr(layer_folding, "_trace", count)
    monkeypatch.setattr(layer_folding, "answer_from_kept", lambda recipe, rank: None)
    checked_folds.forget_all()
    yield counts
    checked_folds.forget_all()


def test_each_report_equals_that_of_a_new_process(tmp_path: Path, num_models: list[int]) -> None:
    base = make_config(tmp_path, "lora", {**LORA, "sequence_len": 4096})
    configs = {name: {**base, **changes} for name, changes, _ in QUESTIONS}
    expected = unfolded_reports(configs)
    for name, _, covered in QUESTIONS:
        assert report_of(configs[name], fold=True) == expected[name], name
        assert num_models[-1] == (1 if covered else 2), name


def test_without_checks_figures_are_the_same(tmp_path: Path, num_models: list[int]) -> None:
    base = make_config(
        tmp_path, "lora", {**LORA, "sequence_len": 4096, "micro_batch_size": 2, "optimizer": "adamw_torch"}
    )
    configs = {name: {**base, **changes} for name, (changes, _) in LIKE_THE_FIRST.items()}
    expected = unfolded_reports(configs)
    report_of(base, fold=True)
    assert checked_folds.kept()[0].growth, "the norms of all gradients grow with their number"
    for name, (_, models) in LIKE_THE_FIRST.items():
        before = checked_folds.kept()
        with checks_left_out():
            assert report_of(configs[name], fold=True) == expected[name], name
        assert num_models[-1] == models, name
        assert len(checked_folds.kept()) - len(before) == models - 1, name


def test_an_unchecked_run_is_not_used_for_another_estimate(tmp_path: Path) -> None:
    kept_runs.forget_kept()
    checked_folds.forget_all()
    base = make_config(tmp_path, "lora", {**LORA, "sequence_len": 4096})
    report_of(base, fold=True)
    with checks_left_out():
        report_of({**base, "lora_r": 6}, fold=True)
    assert len(kept_runs._kept) == len(checked_folds.kept()) == 1
    report_of({**base, "lora_r": 6}, fold=True)
    assert len(kept_runs._kept) == len(checked_folds.kept()) == 2


def test_a_changed_base_model_is_checked_again(tmp_path: Path, num_models: list[int]) -> None:
    config = make_config(tmp_path, "model", {"sequence_len": 32})
    report_of(config, fold=True)
    path = Path(config["base_model"]) / "config.json"
    for changes in (
        {"intermediate_size": 96},
        {"num_hidden_layers": 10},
        {"tie_word_embeddings": True},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        expected = unfolded_reports({"changed": config})
        assert report_of(config, fold=True) == expected["changed"], changes
        assert num_models[-1] == 2, changes


def test_few_checks_are_kept(tmp_path: Path, num_models: list[int]) -> None:
    config = make_config(tmp_path, "model", {})
    report_of(config, fold=True)
    (kept,) = checked_folds._checked
    for _ in range(3 * checked_folds.MOST_KEPT):
        checked_folds.remember(replace(kept, rank=5))
    assert len(checked_folds._checked) == checked_folds.MOST_KEPT


def test_a_check_of_another_process_is_used(tmp_path: Path, num_models: list[int]) -> None:
    base = make_config(tmp_path, "lora", {**LORA, "sequence_len": 4096})
    longer = {**base, "sequence_len": 4160}
    expected = unfolded_reports({"longer": longer})
    report_of(base, fold=True)
    packed = checked_folds.pack(checked_folds.kept())
    checked_folds.forget_all()
    checked_folds.unpack(packed)
    assert report_of(longer, fold=True) == expected["longer"]
    assert num_models[-1] == 1


def test_a_check_covers_only_the_records_that_it_compared(tmp_path: Path, num_models: list[int]) -> None:
    report_of(make_config(tmp_path, "model", {"optimizer": "adamw_torch"}), fold=True)
    (kept,) = checked_folds._checked
    assert kept.growth, "foreach norms grow with the number of gradients"
    assert kept.covers(kept)
    columns = kept.ledger.columns
    grown = columns.nbytes.copy()
    grown[next(iter(kept.growth))] += 4
    freed = columns.freed_tick.copy()
    freed[-1] -= 1

    def with_columns(**changed: Any) -> checked_folds.CheckedFold:
        allocations = type(kept.ledger.allocations)(replace(columns, **changed))  # type: ignore[call-arg]
        return replace(kept, ledger=replace(kept.ledger, allocations=allocations))

    assert kept.covers(with_columns(nbytes=columns.nbytes.copy()))
    others = (
        with_columns(nbytes=grown),
        with_columns(freed_tick=freed),
        replace(kept, rank=1),
        replace(kept, notes=()),
        replace(kept, facts=replace(kept.facts, tensors=())),
        replace(kept, layers=replace(kept.layers, at_tick={})),
        replace(kept, repetition=kept.repetition.with_periods(4)),
    )
    assert not any(kept.covers(other) for other in others)


def test_a_session_adds_to_its_settings(tmp_path: Path, num_models: list[int]) -> None:
    config = make_config(tmp_path, "model", dict(LORA))
    session = Session(
        config, overrides=["sequence_len=4096", "lora_r=8"], assumptions={"autocast": False}, hub="never", gpu="24GiB"
    )
    first, second = session.estimate(), session.estimate(overrides={"sequence_len": 8192})
    third = session.estimate(overrides=["sequence_len=6144"], gpu="48GiB")
    assert [report.batch.row_tokens for report in (first, second, third)] == [4096, 8192, 6144]
    assert [report.gpu.memory_bytes >> 30 for report in (first, second, third)] == [24, 24, 48]
    assert {report.choices["precision.autocast"].value for report in (first, second, third)} == {"False"}
    assert num_models == [2, 1, 1]
    # a check is valid for another card too, if the events are the same; Hopper has another workspace of cuBLAS
    hopper = session.estimate(gpu="H100")
    every_layer = session.estimate(gpu="H100", assumptions={"fold": False})
    assert (hopper.peak, hopper.buckets, hopper.holders) == (every_layer.peak, every_layer.buckets, every_layer.holders)
    assert hopper.peak.allocated_bytes > first.peak.allocated_bytes
