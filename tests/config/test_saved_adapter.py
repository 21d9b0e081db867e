"""`lora_model_dir`: the saved adapter's own configuration is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model
from support.whole_runs import load, make_recipe

from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Ledger
from axmem_trace.recipe.recipe import Recipe

SAVED = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "lora_dropout": 0.0,
    "bias": "none",
}


def save(directory: Path, tensors: dict[str, list[int]] | None = None, **changes: Any) -> str:
    """An adapter's directory. If `tensors` has offsets, it includes the header of the weights' file."""
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({**SAVED, **changes}))
    if tensors:
        rows = {name: {"dtype": "BF16", "shape": [1], "data_offsets": offsets} for name, offsets in tensors.items()}
        header = json.dumps({"__metadata__": {"format": "pt"}, **rows}).encode()
        (directory / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(directory)


def read(tmp_path: Path, **keys: Any) -> Recipe:
    lora = {"adapter": "lora", "lora_r": 16, "lora_alpha": 8, "lora_target_linear": True}
    return make_recipe(tmp_path, **{**lora, **keys})


def load_adapter(recipe: Recipe) -> tuple[Ledger, int]:
    """The ledger of loading, and the number of trainable parameters."""
    ledger, built = load(recipe)
    return ledger, sum(each.numel() for each in built.module.parameters() if each.requires_grad)


def test_rank_and_targets_are_those_of_the_saved_adapter(tmp_path):
    recipe = read(tmp_path, lora_model_dir=save(tmp_path / "a"))
    _, trainable = load_adapter(recipe)
    assert trainable == 2 * 4 * (32 + 32)  # q_proj of two layers, rank 4: not rank 16 on all linears
    assert "decides the adapter" in recipe.reasons["adapter.rank"].text
    assert not [note for note in recipe.notes if note.key == "lora_model_dir"]


def test_missing_fields_of_the_saved_configuration_are_not_taken_from_the_yaml(tmp_path):
    recipe = read(
        tmp_path,
        lora_model_dir=save(tmp_path / "a", target_modules=["v_proj"]),
        lora_dropout=0.1,
        peft_use_dora=True,
        lora_modules_to_save=["lm_head"],
    )
    assert (recipe.adapter.dora, recipe.adapter.modules_to_save, recipe.adapter.dropout) == (False, (), 0.0)


def test_biases_are_trained_if_the_saved_adapter_says_so(tmp_path):
    keys = {"base_model": write_tiny_model("qwen2", tmp_path / "qwen2")}
    plain = load_adapter(read(tmp_path, lora_model_dir=save(tmp_path / "a"), **keys))[1]
    biased = load_adapter(read(tmp_path, lora_model_dir=save(tmp_path / "b", bias="lora_only"), **keys))[1]
    assert biased - plain == 2 * 32  # q_proj's bias in two layers


def test_the_file_is_on_the_gpu_until_it_is_copied(tmp_path):
    made = load_adapter(read(tmp_path, lora_r=4, lora_target_linear=False, lora_target_modules=["q_proj"]))[0]
    loaded = load_adapter(read(tmp_path, lora_model_dir=save(tmp_path / "a", {"A": [0, 256], "B": [256, 512]})))[0]
    assert loaded.allocated_at(loaded.ticks) == made.allocated_at(made.ticks)
    assert loaded.peak(phase="load").allocated_bytes - made.allocated_at(made.ticks) >= 2 * 512
    arrived = [each for each in loaded.allocations if each.op == "aten.empty.memory_format" and each.nbytes == 256]
    assert len(arrived) == 2


def test_without_the_file_its_assumed_size_is_that_of_the_adapter(tmp_path):
    ledger, _ = load_adapter(read(tmp_path, lora_model_dir=save(tmp_path / "a")))
    # A and B of two layers, 4 x 32 fp32: once as adapters, once as they are read.
    assert sum(each.nbytes == 4 * 32 * 4 and each.op.startswith("aten.empty") for each in ledger.allocations) == 8


def test_a_missing_adapter_is_reported(tmp_path):
    recipe = read(tmp_path, lora_model_dir="someone/adapter")
    assert recipe.adapter.rank == 16
    notes = [note for note in recipe.notes if note.key == "lora_model_dir"]
    assert [note.kind for note in notes] == ["assumed"]
    assert "is not here" in notes[0].text


def test_a_missing_adapter_without_other_settings_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no rank"):
        read(tmp_path, lora_model_dir="someone/adapter", lora_r=None)


@pytest.mark.parametrize(
    ("content", "words"),
    [("[]", "not contain a mapping"), ("{", "can't be read"), ('{"peft_type": "IA3"}', "type IA3")],
)
def test_a_saved_adapter_that_is_not_lora_is_refused(tmp_path, content, words):
    directory = save(tmp_path / "a")
    Path(directory, "adapter_config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, lora_model_dir=directory)


def test_a_broken_weights_file_is_ignored(tmp_path):
    directory = save(tmp_path / "a")
    Path(directory, "adapter_model.safetensors").write_bytes(b"\xff" * 16)
    assert read(tmp_path, lora_model_dir=directory).adapter.file_tensor_bytes == ()
