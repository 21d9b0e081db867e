"""The same run on several numbers of GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.__main__ import main
from axmem_trace.advice.gpu_counts import CountFit, fit_counts
from axmem_trace.errors import ConfigError
from axmem_trace.render.gpu_counts import render_counts
from axmem_trace.units import GIB


def write_config(directory: Path, **keys: Any) -> Path:
    path = directory / "run.yml"
    config = {
        "base_model": str(write_tiny_model("llama", directory / "llama")),
        "sequence_len": 24,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "optimizer": "adamw_torch_fused",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_each_line_is_the_report_for_that_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, fsdp_version=2, fsdp_config={"reshard_after_forward": True})
    assert main(["scale", str(config), "--gpu", "2 x 24GiB", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["gpus"], row["machines"]) for row in rows] == [(1, 1), (2, 1), (4, 1), (8, 1), (16, 2)]
    for row in rows[1:3]:
        report = estimate(config, gpu="24GiB", num_gpus=row["gpus"], hub="never")
        assert row["need_bytes"] == report.peak.device_bytes
        assert row["left_bytes"] == report.headroom_bytes
        assert row["verdict"] == report.verdict == "fits with room"


REPLICATED = {"dp_replicate_size": 4, "dp_shard_size": 2}


def test_numbers_that_the_mesh_excludes_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, fsdp_version=2, fsdp_config={"reshard_after_forward": True}, **REPLICATED)
    main(["scale", str(config)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["GPUs", "allocated"]
    by_count = {line.split()[0]: line for line in lines[1:]}
    assert "can't run: dp_replicate_size x dp_shard_size = 8, but the run has 2 GPUs" in by_count["2"]
    assert "can't run" not in by_count["8"]


def test_an_error_of_the_configuration_is_an_error(tmp_path: Path) -> None:
    def refuse(gpus: int, nodes: int) -> Any:
        raise ConfigError(problem="no such model", key="base_model")

    with pytest.raises(ConfigError, match="no such model"):
        fit_counts(refuse)


def test_a_line() -> None:
    fit = CountFit(
        count=16,
        machines=2,
        verdict="tight",
        allocated_bytes=GIB,
        reserved_bytes=2 * GIB,
        need_bytes=3 * GIB,
        left_bytes=GIB // 4,
    )
    assert (
        render_counts([fit], "text").splitlines()[1] == "  16       1.00      2.00     3.00     0.25  tight, 2 machines"
    )
