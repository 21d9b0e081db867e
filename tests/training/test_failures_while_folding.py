"""Failures while layers are folded: after an error of the model all layers are traced; a bug of ours shows its
traceback."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from support.folded_runs import NUM_LAYERS, make_config, report_of
from transformers.models.llama import modeling_llama

from axmem_trace.training import checked_folds, layer_folding
from axmem_trace.training.failures import is_outside_this_package

pytestmark = pytest.mark.usefixtures("short_models_fold")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("models.layer_folding", "renumber"),
        ("training.layer_folding", "find_sections"),
        ("training.layer_folding", "growing_sizes"),
        ("training.layer_folding", "Unfolding"),
    ],
)
def test_a_bug_in_folding_is_not_hidden(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, "llama", {})
    checked_folds.forget_all()
    monkeypatch.setattr(importlib.import_module(f"axmem_trace.{module}"), name, None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        report_of(config, fold=True)


def test_a_model_that_fails_with_few_layers_is_traced_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, "llama", {})
    folded = report_of(config, fold=True)
    forward, trace_run = modeling_llama.LlamaModel.forward, layer_folding.trace_run
    runs: list[layer_folding.TracedRun] = []

    def fail_if_short(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(self.layers) < NUM_LAYERS:
            raise ValueError(f"only {len(self.layers)} layers")
        return forward(self, *args, **kwargs)

    def keep(*args: Any, **kwargs: Any) -> layer_folding.TracedRun:
        runs.append(trace_run(*args, **kwargs))
        return runs[-1]

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", fail_if_short)
    monkeypatch.setattr(layer_folding, "trace_run", keep)
    assert report_of(config, fold=True) == folded
    (run,) = runs
    assert run.not_folded.startswith("ConfigError in a short model")
    assert "ValueError: only 5 layers" in run.not_folded


def test_an_error_outside_a_library_call_is_our_bug() -> None:
    """This file takes the role of the library. torch is between it and the error, but is not the cause."""
    with pytest.raises(AttributeError) as in_our_code:
        is_outside_this_package(None)  # type: ignore[arg-type]
    assert not is_outside_this_package(in_our_code.value)
    with pytest.raises(ZeroDivisionError) as in_this_file:
        _ = 1 / 0
    assert is_outside_this_package(in_this_file.value)
