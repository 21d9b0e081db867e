"""The lines that axolotl will log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.render.html.document import render_page
from axmem_trace.report import Report


def estimate(tmp_path: Path, **changes: Any) -> Report:
    config = {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "sequence_len": 64,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "optimizer": "adamw_torch",
        **changes,
    }
    return axmem_trace.estimate(config, hub="never")


@pytest.mark.parametrize("logging_steps", [None, 1])
def test_each_line_has_the_peaks_since_the_line_before(tmp_path: Path, logging_steps: int | None) -> None:
    """Evaluation comes before training (axolotl sets `eval_on_start`), so its line is the first. It is lower, because
    there are neither gradients nor states. Adam's states are allocated in the first step's optimizer, so forward of
    later steps is higher."""
    report = estimate(tmp_path, val_set_size=0.1, evals_per_epoch=2, logging_steps=logging_steps)
    evaluation, first, later = report.logged
    assert [evaluation.name, first.name, later.name] == ["evaluation", "first step", "later steps"]
    assert first.allocated_bytes == report.phases["step_1"].counted_bytes
    assert later.allocated_bytes == report.phases["step_2"].counted_bytes
    assert evaluation.allocated_bytes < first.allocated_bytes < later.allocated_bytes
    assert evaluation.reserved_bytes <= first.reserved_bytes <= later.reserved_bytes


def test_a_line_for_ten_steps_has_their_highest_peaks(tmp_path: Path) -> None:
    first, later = estimate(tmp_path, logging_steps=10).logged
    assert first.name == "steps 1 to 10"
    assert first.allocated_bytes == later.allocated_bytes


def test_trl_does_not_log_memory(tmp_path: Path) -> None:
    report = estimate(
        tmp_path,
        rl="dpo",
        datasets=[{"path": "x", "type": "chatml.intel"}],
        adapter="lora",
        lora_r=4,
        lora_alpha=8,
        lora_target_linear=True,
    )
    assert report.logged == ()
    assert "nothing logs it" in axmem_trace_text(report)
    assert "log nothing of memory" in render_page(report)


def axmem_trace_text(report: Report) -> str:
    return str(report)


def test_the_first_screen_has_the_lines_in_their_order(tmp_path: Path) -> None:
    lines = str(estimate(tmp_path, val_set_size=0.1, evals_per_epoch=2)).splitlines()
    places = [
        next(index for index, line in enumerate(lines) if line.startswith(f"  {name}"))
        for name in ("evaluation", "first step", "later steps")
    ]
    assert places == sorted(places)
