"""The configuration that axolotl runs: the file, and the changes of axolotl's command line."""

from __future__ import annotations

import pytest
import yaml

from axmem_trace.cli.parser import build_parser
from axmem_trace.config.document.overrides import apply_overrides
from axmem_trace.integrations.run_request import RunRequest, find_changes, name_card
from axmem_trace.units import GIB

FILE = {
    "base_model": "org/model",
    "micro_batch_size": 2,
    "learning_rate": 2e-4,
    "trl": {"beta": 0.1},
    "datasets": [{"path": "a.jsonl", "type": "completion"}],
    "debug": True,
}


def write(folder, values=FILE):
    path = folder / "run.yml"
    path.write_text("# a comment\n" + yaml.safe_dump(values))
    return {**values, "axolotl_config_path": str(path)}


def test_nothing_changed(tmp_path):
    assert find_changes(write(tmp_path), ["debug", "shard"]) == {}


def test_changed_added_and_removed_keys(tmp_path):
    config = write(tmp_path) | {"micro_batch_size": 4, "trl": {"beta": 0.2}, "bf16": True, "shard": False}
    del config["learning_rate"]
    assert find_changes(config, ["debug", "shard"]) == {
        "micro_batch_size": 4,
        "trl": {"beta": 0.2},
        "bf16": True,
        "learning_rate": None,
    }


def test_an_empty_file(tmp_path):
    (tmp_path / "run.yml").write_text("")
    found = find_changes({"axolotl_config_path": str(tmp_path / "run.yml"), "base_model": "org/model"}, [])
    assert found == {"base_model": "org/model"}


def test_the_arguments_mean_the_same_configuration(tmp_path):
    """This package's command line reads from them the same configuration that axolotl runs, including types."""
    config = write(tmp_path) | {
        "micro_batch_size": 4,
        "learning_rate": 1e-05,
        "output_dir": "a: b, [c] # d",
        "resume": None,
        "flag": False,
        "numbers": "0123",
        "trl": {"beta": 0.25, "names": ["x", "y: z"]},
        "path": tmp_path / "ä",
    }
    request = RunRequest(config=tmp_path / "run.yml", changes=find_changes(config, []), card="RTX 4090", num_gpus=2)
    options = build_parser().parse_args([*request.arguments(), "--format", "json"])
    changed, _ = apply_overrides(FILE, options.overrides)
    expected = {key: value for key, value in config.items() if key != "axolotl_config_path"}
    assert changed == {**expected, "path": str(tmp_path / "ä")}
    assert (options.gpu, options.num_gpus, options.num_nodes) == ("RTX 4090", 2, 1)
    assert not options.trust_remote_code


@pytest.mark.parametrize(
    ("name", "nbytes", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", 25_251_020_800, "NVIDIA GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090", 48 * GIB, "49152MiB"),  # a rebuilt card with twice the memory
        ("Radeon Nonsense", 16 * GIB + 5, "16384MiB"),
        ("AMD Instinct MI300X", 192 * GIB, "196608MiB"),  # another maker's card is refused by name
    ],
)
def test_the_card_by_name_or_by_size(name, nbytes, expected):
    assert name_card(name, nbytes) == expected
