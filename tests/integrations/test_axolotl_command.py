"""`axolotl memory`: axolotl's options for keys are translated to `--set`; this package's options are not changed."""

from __future__ import annotations

import importlib.util
from importlib.metadata import entry_points

import pytest

pytest.importorskip("click")
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("axolotl"), reason="axolotl is not installed here")


def translate(*arguments: str) -> list[str]:
    from axmem_trace.integrations.axolotl_command import translate

    return translate(arguments)


def test_axolotl_finds_the_command():
    from axolotl.cli.main import cli
    from click.testing import CliRunner

    assert [point.name for point in entry_points(group="axolotl.cli_commands")].count("memory") == 1
    done = CliRunner().invoke(cli, ["memory", "--help"])
    assert done.exit_code == 0
    assert "--gpu" in done.output
    assert "Predict the GPU memory" in done.output


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["c.yml"], ["c.yml"]),
        (["c.yml", "--gpu", "RTX 4090", "--full"], ["c.yml", "--gpu", "RTX 4090", "--full"]),
        (["c.yml", "--micro-batch-size", "4"], ["c.yml", "--set", "micro_batch_size=4"]),
        (["--micro-batch-size=4", "c.yml", "--gpus", "2"], ["c.yml", "--gpus", "2", "--set", "micro_batch_size=4"]),
        (["c.yml", "--no-sample-packing"], ["c.yml", "--set", "sample_packing=false"]),
        (["c.yml", "--sample-packing", "--full"], ["c.yml", "--full", "--set", "sample_packing=true"]),
        (["c.yml", "--trl.beta", "0.2"], ["c.yml", "--set", "trl.beta=0.2"]),
        (["c.yml", "--set", "lora_r=8"], ["c.yml", "--set", "lora_r=8"]),
        (["c.yml", "--strict", "--trust-remote-code"], ["c.yml", "--strict", "--trust-remote-code"]),
        (["gpus", "c.yml", "--all"], ["gpus", "c.yml", "--all"]),
        (["c.yml", "--output-dir", "[a]"], ["c.yml", "--set", "output_dir='[a]'"]),
    ],
)
def test_options(given, expected):
    assert translate(*given) == expected


def test_an_unknown_option_is_refused():
    import click

    with pytest.raises(click.UsageError, match="nonsense"):
        translate("c.yml", "--nonsense", "3")
