"""If the recorded peak of evaluation is above that of training, a warning names the configuration line that is the
reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.report import Report

BASE = "micro_batch_size: 1\nsequence_len: 64\nlearning_rate: 0.0001\nadapter: lora\nlora_r: 4\nlora_alpha: 8\n"
BASE += "lora_target_linear: true\ngradient_checkpointing: true\n"
EVAL = "val_set_size: 0.1\neval_steps: 10\n"
LIGER = "plugins:\n  - axolotl.integrations.liger.LigerPlugin\nliger_fused_linear_cross_entropy: true\n"

WIDE = "overrides_of_model_config:\n  vocab_size: 65536\nsample_packing: false\n"
"""With this vocabulary logits are larger than everything else."""


def estimate(tmp_path: Path, text: str) -> Report:
    path = tmp_path / "c.yml"
    path.write_text(f"base_model: {write_tiny_model('llama', tmp_path / 'llama')}\n{BASE}{text}", encoding="utf-8")
    return axmem_trace.estimate(path, hub="never")


def reported(report: Report) -> list[tuple[str, str, int, int]]:
    return [(each.kind, each.key, each.line, each.bytes) for each in report.notes if "more than training" in each.text]


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (EVAL + "eval_batch_size: 512\n", "eval_batch_size", 12),
        (EVAL + "eval_sequence_len: 32768\n", "eval_sequence_len", 12),
        (EVAL + LIGER + WIDE, "liger_fused_linear_cross_entropy", 14),
    ],
)
def test_it_is_reported_if_the_peak_of_evaluation_is_higher(tmp_path, text, key, line):
    report = estimate(tmp_path, text)
    above = report.phases["eval"].allocated_bytes - max(report.phases[f"step_{n}"].allocated_bytes for n in (1, 2))
    assert above > 0
    assert reported(report) == [("warning", key, line, above)]


@pytest.mark.parametrize("text", ["", EVAL, EVAL + "eval_batch_size: 2\n", EVAL + WIDE])
def test_only_more_tokens_give_no_warning(tmp_path, text):
    """Without gradients, twice as many rows may still need less memory: the recorded peaks show it."""
    report = estimate(tmp_path, text)
    if "eval" in report.phases:
        assert report.phases["eval"].allocated_bytes <= report.phases["step_2"].allocated_bytes
    assert reported(report) == []
