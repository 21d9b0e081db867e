"""Every shipped configuration: keys that axolotl knows, base models that the catalogue has, figures that are right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

from axmem_trace.catalogue import find_base_model
from axmem_trace.catalogue.table import load_models

CONFIGS = sorted((ROOT / "configs").rglob("*.yml"))
SCHEMA = ROOT.parent / "shared" / "axolotl-0.19.0-schema.json"
NAMES = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]
ANCESTORS = [f"code-llama/{size}/{method}.yml" for size in ("7b", "13b", "34b") for method in ("lora", "qlora")]
ANCESTORS += [
    f"{model}/{method}.yml" for model in ("falcon/7b", "open-llama/3b") for method in ("lora", "qlora", "full")
]
PLUGIN_KEYS = {
    "axolotl.integrations.liger.LigerPlugin": re.compile("liger_.*"),
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": re.compile("cut_cross_entropy"),
}


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))


def test_the_configurations_of_the_older_tool_are_included():
    assert set(ANCESTORS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_base_model_is_bundled(name):
    assert find_base_model(load(name)["base_model"], hub="never").source.startswith("catalogue ")


@pytest.mark.skipif(not SCHEMA.is_file(), reason="../shared/axolotl-0.19.0-schema.json is not here")
@pytest.mark.parametrize("name", NAMES)
def test_keys_are_axolotls(name):
    fields = json.loads(SCHEMA.read_text(encoding="utf-8"))["AxolotlInputConfig"]
    config = load(name)
    patterns = [PLUGIN_KEYS[plugin] for plugin in config.get("plugins", ())]
    unknown = [key for key in config if key not in fields and not any(pattern.fullmatch(key) for pattern in patterns)]
    assert unknown == []


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_in_the_packages_own_table(name):
    table = json.loads((ROOT / "axmem_trace" / "config" / "document" / "keys.json").read_text(encoding="utf-8"))["keys"]
    assert [key for key in load(name) if key not in table] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_method_in_the_path_is_the_method_in_the_file(name):
    config = load(name)
    method = Path(name).stem
    assert config.get("adapter") == (None if method == "full" else method)
    assert bool(config.get("load_in_4bit")) == (method == "qlora")
    assert isinstance(config["learning_rate"], float)  # YAML reads 1e-5 as a string
    assert not (method == "full" and config.get("load_in_8bit"))


@pytest.mark.parametrize("name", NAMES)
def test_every_memory_key_has_a_comment_near(name):
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()
    assert sum("#" in line for line in lines) >= 12
    assert max(map(len, lines)) <= 120


def shapes_of_linears(config: dict) -> list[tuple[int, int]]:
    """(in, out) of the linear layers in one decoder layer: llama and similar models, and falcon with one key and value
    head."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if config["model_type"] == "falcon":
        head = hidden // heads
        return [(hidden, hidden + 2 * head), (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)]
    head = config.get("head_dim") or hidden // heads
    wide, narrow = heads * head, (config.get("num_key_value_heads") or heads) * head
    inner = config["intermediate_size"]
    attention = [(hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("full.yml")])
def test_the_stated_number_of_adapter_weights(name):
    """A and B of a LoRA pair have r x in and out x r elements: r x (in + out) for each linear layer."""
    config = load(name)
    model = load_models()[config["base_model"]]["config"]
    linears = shapes_of_linears(model)
    targets = config.get("lora_target_modules", ())
    if targets and not any("up_proj" in target for target in targets):
        linears = linears[:4]
    expected = config["lora_r"] * model["num_hidden_layers"] * sum(sum(shape) for shape in linears)
    stated = re.search(r"# ([\d,]+) trainable weights", (ROOT / "configs" / name).read_text(encoding="utf-8"))
    assert stated is not None
    assert int(stated[1].replace(",", "")) == expected


def test_the_34b_lora_of_the_readme():
    config = load("code-llama/34b/lora.yml")
    wanted = {
        "load_in_8bit": True,
        "adapter": "lora",
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_target_linear": True,
        "lora_dropout": 0.05,
        "sequence_len": 4096,
        "sample_packing": True,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": "adamw_bnb_8bit",
        "bf16": "auto",
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
    }
    assert {key: config[key] for key in wanted} == wanted
