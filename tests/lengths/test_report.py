"""Rows of different lengths in a report: when they are simulated, the notes, and the figure for the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.lengths.when import MORE_AT_MOST
from axmem_trace.render.describe import describe_verdict
from axmem_trace.render.html.document import render_page
from axmem_trace.report import Report
from axmem_trace.units import format_bytes


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A configuration whose vocabulary makes large logits: 2 x 1024 x 8192 x 4 bytes are 64 MiB."""
    model = write_tiny_model("llama", tmp_path / "llama", vocab_size=8192, max_position_embeddings=2048)
    return {
        "base_model": model,
        "micro_batch_size": 2,
        "sequence_len": 1024,
        "gradient_accumulation_steps": 2,
        "bf16": True,
        "learning_rate": 1e-5,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "attn_implementation": "flash_attention_2",
    }


def ask(config: dict[str, Any], *assumptions: str, gpu: str = "80GiB") -> Report:
    return axmem_trace.estimate(config, assumptions=assumptions, gpu=gpu, hub="never")


def test_it_is_simulated_on_request_and_the_worst_sequence_counts(config: dict[str, Any]) -> None:
    report = ask(config, "lengths=vary", "allocator=default")
    rows = report.varying_rows
    assert rows is not None
    assert (rows.sequences, rows.steps, rows.failures, rows.unproved_sizes) == (5, 40, 0, 0)
    assert rows.full_reserved_bytes == report.peak.reserved_bytes
    assert rows.full_reserved_bytes < rows.median_reserved_bytes <= rows.worst_reserved_bytes
    assert rows.decides
    outside = report.peak.context_bytes
    assert report.needed_bytes == rows.worst_reserved_bytes + outside
    assert report.headroom_bytes == (80 << 30) - report.needed_bytes
    assert "worst of 40 steps" in str(report)
    assert "64 to 1024 tokens" in rows.text
    assert rows.text in render_page(report)
    assert rows.text in report._repr_html_()
    assert json.loads(report.to_json())["varying_rows"]["worst_reserved_bytes"] == rows.worst_reserved_bytes
    assert Report.from_json(report.to_json()).varying_rows == rows


def test_the_same_configuration_has_the_same_result(config: dict[str, Any]) -> None:
    one, other = (ask(config, "lengths=vary").varying_rows for _ in range(2))
    assert one == other


def test_a_default_estimate_does_not_simulate_and_has_a_note(config: dict[str, Any]) -> None:
    report = ask(config)
    assert report.varying_rows is None
    assert "lengths" not in report.elapsed_seconds
    (note,) = (note for note in report.notes if note.key == "lengths")
    assert (note.kind, note.direction) == ("assumed", "more")
    assert report.verdict == "fits with room"


def test_full_rows_are_not_simulated(config: dict[str, Any]) -> None:
    for changes in ({"pad_to_sequence_len": True}, {"sample_packing": True}):
        report = ask({**config, **changes})
        assert report.varying_rows is None
        assert not [note for note in report.notes if note.key == "lengths"]


def test_near_the_limit_it_is_simulated_without_a_request(config: dict[str, Any]) -> None:
    """Cards whose free memory is slightly less, or slightly more, than such batches needed in addition in measured
    cases."""
    need = ask(config)
    outside = need.peak.context_bytes
    limit = int((1 + MORE_AT_MOST["expandable"]) * need.peak.reserved_bytes) + outside
    assert ask(config, gpu=f"{limit - (1 << 20)}B").varying_rows is not None
    assert ask(config, gpu=f"{limit + (1 << 20)}B").varying_rows is None


def test_known_lengths_replace_full_rows(config: dict[str, Any], tmp_path: Path) -> None:
    """Samples of at most 256 tokens: the run fits a card on which full rows do not."""
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps([100, 200, 256]), encoding="utf-8")
    full = ask(config)
    card = f"{full.peak.allocated_bytes + full.peak.context_bytes - (1 << 20)}B"
    assert ask(config, "lengths=full", gpu=card).verdict == "does not fit"
    short = ask(config, f"lengths={file}", gpu=card)
    assert short.varying_rows is not None
    assert short.varying_rows.longest_row_tokens == 256
    assert (short.fits, short.out_of_memory) == (True, None)
    assert short.needed_bytes < full.needed_bytes


def test_a_verdict_is_tight_where_lengths_can_not_be_simulated_and_says_so(config: dict[str, Any]) -> None:
    """With expandable segments such batches need up to 12 % more, which a card with 5 % left may not have."""
    short = {**config, "sequence_len": 32, "micro_batch_size": 256}
    need = ask(short, "lengths=vary").needed_bytes
    report = ask(short, "lengths=vary", gpu=f"{int(1.05 * need)}B")
    assert (report.fits, report.verdict, report.why) == (True, "tight", "")
    more = format_bytes(round(0.12 * need))
    assert report.tight_because.startswith(
        f"may need up to {more} more: batches that differ in length are not simulated"
    )
    assert "rows are too short" in report.tight_because
    assert describe_verdict(report).endswith(f" left: {report.tight_because}")
    assert json.loads(report.to_json())["tight_because"] == report.tight_because
    roomy = ask(short, "lengths=vary", gpu=f"{int(1.2 * need)}B")
    assert (roomy.verdict, roomy.tight_because) == ("fits with room", "")


def test_images_are_not_simulated_and_the_verdict_says_so(config: dict[str, Any]) -> None:
    images = {**config, "processor_type": "AutoProcessor"}
    report = ask(images, "lengths=vary", "allocator=default", "images_per_row=1")
    (note,) = (note for note in report.notes if note.key == "lengths")
    assert (note.kind, note.direction) == ("not_modelled", "more")
    assert report.verdict == "cannot say"
    assert "images" in report.why
