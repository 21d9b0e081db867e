"""A recipe is not folded if a setting may treat layers differently. No torch."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tiny_models import write_tiny_model

from axmem_trace.config import read_recipe
from axmem_trace.config.axolotl.behaviour import BEHAVIOURS
from axmem_trace.folding.refuse_recipe import _ALIKE, names_no_layer, refuse_recipe
from axmem_trace.folding.repetition import CannotFold
from axmem_trace.recipe.objective import Objective, Reference


@pytest.fixture
def recipe(tmp_path: Path):
    config = {
        "base_model": write_tiny_model("llama", tmp_path),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    return read_recipe(config, hub="never")


def test_a_plain_recipe_is_folded(recipe):
    refuse_recipe(recipe)


@pytest.mark.parametrize("release", BEHAVIOURS)
@pytest.mark.parametrize(
    "name", ["llama-3.1/8b/qlora", "llama-3.1/8b/lora", "llama-3.1/8b/full", "llama-3.1/70b/qlora"]
)
def test_no_release_of_axolotl_itself_treats_layers_differently(name, release):
    refuse_recipe(read_recipe(ROOT / "configs" / f"{name}.yml", hub="never", axolotl=release))


def test_every_listed_field_exists(recipe):
    for group, names in _ALIKE.items():
        part = getattr(recipe, group)
        assert {name for name in names.split() if name != "*" and not hasattr(part, name)} == set(), group


@dataclass(frozen=True)
class _Tower:
    first_layers: int = 0


@pytest.mark.parametrize(("value", "is_refused"), [(_Tower(), False), (_Tower(first_layers=3), True)])
def test_a_part_of_the_recipe_that_is_not_listed_is_refused_if_it_is_set(recipe, value, is_refused):
    later = make_dataclass("Later", [("tower", _Tower, _Tower())], bases=(type(recipe),), frozen=True, kw_only=True)
    newer = later(**{name: getattr(recipe, name) for name in recipe.__dataclass_fields__}, tower=value)
    if is_refused:
        with pytest.raises(CannotFold, match=r"tower\.first_layers"):
            refuse_recipe(newer)
    else:
        refuse_recipe(newer)


@pytest.mark.parametrize(
    ("objective", "is_refused"),
    [
        (Objective(method="dpo", reference=Reference(kind="adapters_off")), False),
        (Objective(method="kto", reference=Reference(kind="model", resident_model=True)), True),
        (Objective(method="kto", reference=Reference(kind="model", unused_copy=True)), True),
        (Objective(method="grpo"), True),
        (Objective(method="ebft"), True),
    ],
)
def test_objectives_with_one_model_and_no_rollouts_are_folded(recipe, objective, is_refused):
    other = replace(recipe, objective=objective)
    if is_refused:
        with pytest.raises(CannotFold, match="objective"):
            refuse_recipe(other)
    else:
        refuse_recipe(other)


@pytest.mark.parametrize(("method", "is_refused"), [("dpo", True), ("kto", True), ("reward", True), ("orpo", False)])
def test_preferences_with_a_quantised_model_are_folded_if_its_adapter_is_not_cast(recipe, method, is_refused):
    other = replace(
        recipe,
        objective=Objective(method=method),
        quantisation=replace(recipe.quantisation, method="bnb_4bit"),
    )
    if is_refused:
        with pytest.raises(CannotFold, match="adapter weights"):
            refuse_recipe(other)
    else:
        refuse_recipe(other)


def test_a_checkpoint_that_names_layers_is_refused(recipe):
    base = recipe.model.base
    lists = {"quantization_config": {"llm_int8_skip_modules": ["lm_head", "model.layers.3.mlp"]}}
    named = replace(recipe, model=replace(recipe.model, base=replace(base, config={**base.config, **lists})))
    with pytest.raises(CannotFold, match=r"model\.layers\.3\.mlp"):
        refuse_recipe(named)


@pytest.mark.parametrize("text", ["q_proj", "w1", "self_attn.q_proj", "model.layers.*.self_attn", "lm_head"])
def test_names_that_mean_the_same_in_every_layer(text):
    assert names_no_layer(text)


@pytest.mark.parametrize("text", ["layers.3.mlp", "3", r"model\.layers\.[0-9].*", "layers...mlp", "mlp|self_attn", ""])
def test_names_and_patterns_that_may_select_layers(text):
    assert not names_no_layer(text)
