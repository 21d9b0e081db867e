"""`overrides_of_model_kwargs`: axolotl's own arguments are set later and replace them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import whole_runs

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.recipe.recipe import Recipe


def make_config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return whole_runs.make_config(tmp_path, sequence_len=64, **keys)


def read(tmp_path: Path, override: dict[str, Any], **keys: Any) -> Recipe:
    return read_recipe(make_config(tmp_path, overrides_of_model_kwargs=override, **keys), hub="never")


def reported(recipe: Recipe, name: str) -> list[str]:
    return [note.kind for note in recipe.notes if note.key == f"overrides_of_model_kwargs.{name}"]


@pytest.mark.parametrize("name", ["dtype", "torch_dtype", "device_map"])
def test_values_that_axolotl_sets_itself_have_no_effect(tmp_path, name):
    recipe = read(tmp_path, {name: "float32" if "dtype" in name else "cpu"})
    assert reported(recipe, name) == ["ignored"]
    assert recipe.precision.load_dtype == "bfloat16"
    assert not recipe.placement.on_host_first


def test_a_kernel_is_used_although_axolotl_knows_of_none(tmp_path):
    recipe = read(tmp_path, {"attn_implementation": "eager"})
    assert recipe.attention.kernel == "eager"
    assert not recipe.precision.cast_back, "axolotl casts for kernels that it knows of"
    recipe = read(tmp_path, {"attn_implementation": "eager"}, attn_implementation="sdpa")
    assert recipe.attention.kernel == "sdpa"
    assert reported(recipe, "attn_implementation") == ["ignored"]


def test_the_eager_kernel_keeps_scores(tmp_path):
    plain, eager = (
        axmem_trace.estimate(make_config(tmp_path, **keys), hub="never").phases["step_2"].phases["forward"].end_bytes
        for keys in ({}, {"overrides_of_model_kwargs": {"attn_implementation": "eager"}})
    )
    # Two layers of 64 x 64 scores for 4 heads: at least the softmax in fp32 and its copy in bf16.
    assert eager - plain >= 2 * 4 * 64 * 64 * (4 + 2)


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [("use_cache", False, []), ("revision", "main", []), ("max_memory", {0: "1GiB"}, ["not_modelled"])],
)
def test_the_rest_is_harmless_or_reported(tmp_path, name, value, kinds):
    assert reported(read(tmp_path, {name: value}), name) == kinds
