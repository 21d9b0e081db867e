"""DDP around a short model has the buckets of the whole model, and its second step is repeated from the record.

tests/training/test_layer_folding.py tests that folded reports equal those with every layer.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.folded_runs import LORA, make_config

from axmem_trace.config import read_recipe
from axmem_trace.folding.repetition import Repetition
from axmem_trace.folding.sections import list_events
from axmem_trace.ledger import Ledger
from axmem_trace.parallel.ddp import folded
from axmem_trace.training import layer_folding

pytestmark = pytest.mark.usefixtures("short_models_fold")

DDP = {"ddp": True, "ddp_bucket_cap_mb": 1}
SHORT = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4}
RUNS: dict[str, dict[str, Any]] = {
    "full, three micro-batches": {"gradient_accumulation_steps": 3, "model": SHORT},
    "lora, evaluation": {**LORA, "val_set_size": 0.1, "eval_sample_packing": False, "model": SHORT},
    "foreach, one micro-batch": {"gradient_accumulation_steps": 1, "optimizer": "adamw_torch", "model": SHORT},
    "reduced after each micro-batch": {
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        "model": SHORT,
    },
}


def trace(config: dict[str, Any], *, num_gpus: int = 2, fold: bool = False) -> layer_folding.TracedRun:
    recipe = read_recipe(config, hub="never", num_gpus=num_gpus, assumptions={"fold": fold})
    assert recipe.parallel.engine == "ddp"
    return layer_folding.trace_run(recipe)


def events(ledger: Ledger) -> list[tuple[object, ...]]:
    """The events in order. A repeated step has no events for blocks that the first step allocated permanently (cuBLAS's
    workspace)."""
    found: list[tuple[object, ...]] = []
    for event in list_events(ledger):
        if event.kind in ("allocate", "free"):
            each = ledger.allocations[event.number]
            found.append((event.kind, each.nbytes, each.op, each.role, each.module, each.device, each.step, each.phase))
        elif event.kind == "mark":
            mark = ledger.marks[event.number]
            found.append(("mark", mark.phase, mark.step, mark.micro_batch))
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_repeated_step_equals_a_step_that_was_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, "model", {**DDP, **RUNS[name]})
    repeated = trace(config)
    monkeypatch.setattr(layer_folding, "record_run", partial(layer_folding.record_run, repeat=False))
    run = trace(config)
    assert events(repeated.ledger) == events(run.ledger)
    assert sum(event[3] == "buckets" for event in events(run.ledger) if len(event) > 4) > 10


def test_ranks_of_any_number_have_the_same_ledger(tmp_path: Path) -> None:
    config = make_config(tmp_path, "model", {**DDP, **LORA, "val_set_size": 0.1, "eval_sample_packing": False})
    two, *more = (trace(config, num_gpus=count, fold=True) for count in (2, 4, 8))
    assert not two.not_folded
    for run in more:
        assert list(run.ledger.allocations) == list(two.ledger.allocations)
        assert (run.ledger.marks, run.facts, run.notes) == (two.ledger.marks, two.facts, two.notes)


def test_a_ddp_with_other_allocations_is_not_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapper here gives the real model other buckets than its placeholders."""
    wrap = folded.wrap_model

    def wrap_otherwise(model: Any, ddp: Any) -> Any:
        wrapped = wrap(model, ddp)
        if hasattr(model, "config"):
            import torch

            wrapped.register_buffer("more", torch.empty(700, device="meta"))
        return wrapped

    monkeypatch.setattr(folded, "wrap_model", wrap_otherwise)
    run = trace(make_config(tmp_path, "model", DDP), fold=True)
    assert run.not_folded == "DDP allocates other blocks for the model than for placeholders of its parameters"


def test_gradients_of_missing_layers_come_between_those_of_their_neighbours() -> None:
    repetition = Repetition(path="layers", length=7, first=1, period=1, periods=3, missing=2)
    names = ["head", *(f"layers.{layer}.{name}" for layer in (4, 3, 2, 1, 0) for name in "ba"), "embed"]
    assert folded._whole_order(names, repetition) == [
        "head",
        *(f"layers.{layer}.{name}" for layer in (6, 5, 4, 3, 2, 1, 0) for name in "ba"),
        "embed",
    ]
