"""A second estimate in one process: each report equals that of another process in which every layer was traced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.folded_runs import LORA, QLORA, make_config, report_of, unfolded_reports

from axmem_trace.training import kept_runs, layer_folding

pytestmark = pytest.mark.usefixtures("short_models_fold")

Changes = dict[str, Any]
LONGER: tuple[Changes, ...] = ({"sequence_len": 5120}, {"sequence_len": 4160})
CASES: dict[str, tuple[dict[str, Any], tuple[Changes, ...]]] = {
    "full, foreach": ({"optimizer": "adamw_torch"}, LONGER),
    "full, not checkpointed, one micro-batch": (
        {"gradient_checkpointing": False, "gradient_accumulation_steps": 1},
        LONGER,
    ),
    "lora, dropout": ({**LORA, "lora_dropout": 0.1, "micro_batch_size": 2}, (*LONGER, {"micro_batch_size": 4})),
    "qlora, paged, evaluation": ({**QLORA, "optimizer": "paged_adamw_8bit", "val_set_size": 0.1},
                                 (*LONGER, {"sequence_len": 4352, "eval_batch_size": 3})),
    "float16 with a scaler": ({"bf16": False, "fp16": True}, LONGER),
    "experts": ({"family": "qwen3_moe"}, LONGER),
    "sliding and full attention in turns": ({"family": "gemma2", "attn_implementation": "eager"}, LONGER),
    "liger and lora kernels": ({**LORA, "lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True,
                                "plugins": ["axolotl.integrations.liger.LigerPlugin"],
                                "liger_fused_linear_cross_entropy": True, "liger_rms_norm": True}, LONGER),
    "activations on the host": ({**LORA, "activation_offloading": True}, LONGER),
    "checkpointed inputs on the host": ({"activation_offloading": "hidden_states"}, LONGER),
    "too few layers to fold": ({"model": {"num_hidden_layers": 4}}, LONGER),
    "preference": ({**LORA, "rl": "dpo", "datasets": [{"path": "x", "type": "chatml.intel", "split": "train"}]}, LONGER),
}  # fmt: skip
"""A configuration, and the changes that are estimated after it: tracing one micro-batch of the kept model is enough."""
OTHER_EVENTS: dict[str, tuple[dict[str, Any], Changes]] = {
    "padded rows": ({}, {"sequence_len": 4000}),
    "several rows": ({}, {"micro_batch_size": 3}),
    "sorted indices from 3,073 on": ({"sequence_len": 3072}, {"sequence_len": 3136}),
    "another optimizer": ({}, {"optimizer": "lion_8bit"}),
    "more micro-batches": ({"gradient_accumulation_steps": 1}, {"gradient_accumulation_steps": 2}),
}  # fmt: skip
"""Changes after which the whole run is traced."""
BASE = {"sequence_len": 4096}


def configurations(directory: Path) -> dict[str, dict[str, Any]]:
    """All of them by name, and all changed ones."""
    found: dict[str, dict[str, Any]] = {}
    cases = {**CASES, **{name: (case, (change,)) for name, (case, change) in OTHER_EVENTS.items()}}
    for name, (case, changes) in cases.items():
        found[name] = make_config(directory, name, {**BASE, **case})
        found.update({f"{name} {number}": {**found[name], **change} for number, change in enumerate(changes)})
    return found


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return configurations(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def expected(configs: dict[str, dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The reports of the cases that this session tests, made in another process."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    chosen = {name: config for name, config in configs.items() if name.rpartition(" ")[0] in asked}
    return unfolded_reports(chosen)


@pytest.fixture
def num_traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Has one element for each model that is traced completely."""
    traced: list[int] = []
    trace = layer_folding._trace

    def count(*args: Any, **kwargs: Any) -> Any:
        traced.append(len(traced))
        return trace(*args, **kwargs)

    monkeypatch.setattr(layer_folding, "_trace", count)
    kept_runs.forget_kept()
    yield traced
    kept_runs.forget_kept()


@pytest.mark.parametrize("name", CASES)
def test_tracing_one_micro_batch_is_enough(name: str, configs: Any, expected: Any, num_traced: list[int]) -> None:
    report_of(configs[name], fold=True)
    traced = len(num_traced)
    for number in range(len(CASES[name][1])):
        changed = f"{name} {number}"
        assert report_of(configs[changed], fold=True) == expected[changed], changed
    assert len(num_traced) == traced, "traced again"


@pytest.mark.parametrize("name", OTHER_EVENTS)
def test_a_run_with_other_events_is_traced_again(name: str, configs: Any, expected: Any, num_traced: list[int]) -> None:
    report_of(configs[name], fold=True)
    traced, changed = len(num_traced), f"{name} 0"
    assert report_of(configs[changed], fold=True) == expected[changed]
    assert len(num_traced) > traced


def test_few_models_and_runs_are_kept(tmp_path: Path, num_traced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_runs, "MOST_KEPT", 2)
    monkeypatch.setattr(kept_runs, "MOST_RUNS", 2)
    for optimizer in ("adamw_torch_fused", "adamw_8bit", "lion_8bit"):
        report_of(make_config(tmp_path, "model", {"optimizer": optimizer, "sequence_len": 64}), fold=True)
    assert [len(kept.runs) for kept in kept_runs._kept] == [1, 1]
    for tokens in (3136, 4032, 64):  # the gradient of an embedding is sorted from 3,073 indices on
        report_of(make_config(tmp_path, "model", {"optimizer": "lion_8bit", "sequence_len": tokens}), fold=True)
    assert [len(kept.runs) for kept in kept_runs._kept] == [1, 2]


def test_what_a_micro_batch_allocates_is_removed(tmp_path: Path, num_traced: list[int]) -> None:
    config = make_config(tmp_path, "model", {**LORA, **BASE})
    report_of(config, fold=True)
    (kept,) = kept_runs._kept
    record = kept.recording.recorder
    before = len(record._lives), list(record._marks)
    for tokens in (4160, 5120):
        report_of({**config, "sequence_len": tokens}, fold=True)
        assert (len(record._lives), record._marks) == before
        assert all(parameter.grad is None for parameter in kept.built.module.parameters())


def test_an_error_in_a_kept_model_is_not_reported(
    tmp_path: Path, num_traced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, "model", {**LORA, **BASE})
    first = report_of(config, fold=True)

    def fail(*args: Any) -> None:
        raise RuntimeError("by a test")

    monkeypatch.setattr(kept_runs, "record_batches", fail)
    traced = len(num_traced)
    assert report_of(config, fold=True) == first
    assert len(num_traced) > traced
