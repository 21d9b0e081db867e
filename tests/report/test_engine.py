"""A vLLM engine in the trainer's process: its share of the card is a separate figure, and the verdict includes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.report import Report


def estimate(tmp_path: Path, gpu: str = "24GiB", vllm: dict[str, Any] | None = None, **trl: Any) -> Report:
    return axmem_trace.estimate(
        {
            "base_model": write_tiny_model("llama", tmp_path / "llama"),
            "micro_batch_size": 2,
            "sequence_len": 64,
            "gradient_accumulation_steps": 4,
            "learning_rate": 1e-5,
            "rl": "grpo",
            "datasets": [{"path": "x"}],
            "vllm": vllm or {},
            "trl": {
                "use_vllm": True,
                "vllm_mode": "colocate",
                "max_completion_length": 32,
                "num_generations": 4,
                **trl,
            },
        },
        hub="never",
        gpu=gpu,
    )


def test_the_share_is_not_part_of_the_peak(tmp_path: Path) -> None:
    report = estimate(tmp_path)
    assert report.engine is not None
    # TRL's own default, which axolotl 0.21 does not change: 0.3 of 24 GiB
    assert (report.engine.share, report.engine.bytes) == (0.3, int(0.3 * (24 << 30)))
    assert report.engine.together_bytes == report.peak.device_bytes + report.engine.bytes
    assert report.headroom_bytes == (24 << 30) - report.engine.together_bytes
    assert report.fits is True
    assert "for vLLM" in str(report)
    assert Report.from_json(report.to_json()) == report


def test_an_engine_that_finds_too_little_does_not_start(tmp_path: Path) -> None:
    report = estimate(tmp_path, vllm={"gpu_memory_utilization": 0.99})
    assert report.engine is not None
    free = report.engine.free_at_start_bytes
    # the memory of the context and of the loaded model is not free at that moment
    assert free == (24 << 30) - report.peak.context_bytes - report.phases["load"].reserved_bytes
    assert report.engine.bytes > free
    assert (report.engine.starts, report.fits) == (False, False)
    assert "won't start: vLLM asks for 0.99 of the card" in str(report).replace("\n", " ").replace("  ", " ")


def test_a_sleeping_engine_is_awake_only_in_generation(tmp_path: Path) -> None:
    awake = estimate(tmp_path, vllm={"gpu_memory_utilization": 0.5}).engine
    asleep = estimate(tmp_path, vllm={"gpu_memory_utilization": 0.5}, vllm_enable_sleep_mode=True).engine
    assert awake is not None
    assert asleep is not None
    assert asleep.sleeps
    assert asleep.together_bytes <= awake.together_bytes


@pytest.mark.parametrize("keys", [{"use_vllm": False}, {"vllm_mode": "server"}])
def test_no_engine_on_this_card(tmp_path: Path, keys: dict[str, Any]) -> None:
    report = estimate(tmp_path, **keys)
    assert report.engine is None
    said = [note for note in report.notes if note.key == "trl.vllm_mode"]
    assert bool(said) == ("vllm_mode" in keys)
