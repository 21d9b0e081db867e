"""`--margin`: memory of the card that must stay free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.__main__ import main
from axmem_trace.errors import ConfigError
from axmem_trace.report import Report
from axmem_trace.units import parse_margin


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "base_model": write_tiny_model("llama", tmp_path / "llama"),
        "micro_batch_size": 1,
        "sequence_len": 64,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }


def test_a_margin_decides_to_the_byte(config: dict[str, Any]) -> None:
    """A tiny run on 2 GiB leaves more than 1 GiB free. The margin is exactly these free bytes, or one byte more."""
    left = axmem_trace.estimate(config, gpu="2GiB", hub="never").headroom_bytes
    assert left is not None
    assert left > 1 << 30
    fits = axmem_trace.estimate(config, gpu="2GiB", margin=f"{left}B", hub="never")
    too_much = axmem_trace.estimate(config, gpu="2GiB", margin=f"{left + 1}B", hub="never")
    assert (fits.fits, fits.verdict) == (True, "fits with room")
    assert (too_much.fits, too_much.verdict, too_much.headroom_bytes) == (False, "does not fit", left)
    assert "to stay free" in str(too_much)
    assert "to stay free" in too_much._repr_html_()
    assert Report.from_json(too_much.to_json()) == too_much


def test_a_share_is_of_the_card(config: dict[str, Any]) -> None:
    report = axmem_trace.estimate(config, gpu="2GiB", margin="25%", hub="never")
    assert (report.gpu.margin_bytes, report.gpu.margin_share) == (512 << 20, 0.25)


@pytest.mark.parametrize("margin", ["1", "120%", "much", "-1GiB", "%"])
def test_an_invalid_margin_is_refused(config: dict[str, Any], margin: str) -> None:
    with pytest.raises(ConfigError, match="size"):
        axmem_trace.estimate(config, gpu="2GiB", margin=margin, hub="never")
    with pytest.raises(ValueError, match="size"):
        parse_margin(margin)


def test_a_margin_needs_a_card(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no card was named"):
        axmem_trace.estimate(config, margin="1GiB", hub="never")


def test_the_command_line_exits_with_3(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yml"
    path.write_text(json.dumps(config), encoding="utf-8")
    arguments = [str(path), "--offline", "--gpu", "2GiB", "--format", "json"]
    assert main(arguments) == 0
    assert main([*arguments, "--margin", "99%"]) == 3
    assert json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(("{", "")))["gpu"]["margin_share"] == 0.99
    assert main(["check", str(path), "--offline", "--gpu", "2GiB", "--margin", "99%"]) == 3
