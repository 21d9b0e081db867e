"""The release of axolotl that applies, and its effects: each key whose default differs, in both versions."""

from __future__ import annotations

from typing import Any

import pytest

from axmem_trace.config import read_recipe
from axmem_trace.config.axolotl import NEWEST, RELEASES, choose_release, releases
from axmem_trace.config.axolotl.behaviour import BEHAVIOURS
from axmem_trace.config.axolotl.changed_figures import note_changed_figures
from axmem_trace.errors import ConfigError
from axmem_trace.model_facts import ModelFacts, TensorFact
from axmem_trace.recipe.pins import find_other_libraries
from axmem_trace.recipe.recipe import Recipe

LLAMA = "meta-llama/Llama-3.1-8B"
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
PACKED = {"sample_packing": True, "flash_attention": True, "val_set_size": 0.1, "eval_steps": 10}


def read(axolotl: str = "", base_model: str = LLAMA, **keys: Any) -> Recipe:
    config = {
        "base_model": base_model,
        "micro_batch_size": 2,
        "sequence_len": 1024,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }
    return read_recipe(config, hub="never", axolotl=axolotl)


@pytest.fixture(autouse=True)
def _no_axolotl_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "installed_version", lambda distribution: "")


# --- which one ---------------------------------------------------------------------------------------------------------


def test_each_release_has_its_behaviour():
    assert [release.version for release in RELEASES] == list(BEHAVIOURS) == ["0.19.0", "0.20.0", "0.21.0"]
    assert NEWEST is RELEASES[-1]


def test_the_default_is_the_newest_known():
    recipe = read()
    assert recipe.axolotl.version == "0.21.0"
    assert recipe.reasons["axolotl.version"].origin == "default"
    assert "no axolotl is installed" in recipe.reasons["axolotl.version"].text


def test_the_option_is_used_before_the_installed_release_and_the_newest(monkeypatch):
    monkeypatch.setattr(releases, "installed_version", lambda distribution: "0.19.0")
    assert read().axolotl.version == "0.19.0"
    assert "axolotl 0.19.0 is installed here" in read().reasons["axolotl.version"].text
    asked = read("0.20")
    assert (asked.axolotl.version, asked.reasons["axolotl.version"].origin) == ("0.20.0", "override")


@pytest.mark.parametrize(
    ("asked", "taken", "is_it"),
    [
        ("0.19.0", "0.19.0", True),
        ("0.20", "0.20.0", True),
        ("0.21", "0.21.0", True),
        ("0.18.0", "0.19.0", False),
        ("0.5", "0.19.0", False),
        ("0.20.1", "0.20.0", False),
        ("0.21.0.dev0", "0.21.0", False),
        ("0.22.0", "0.21.0", False),
        ("1.0", "0.21.0", False),
        ("v0.20.0", "0.20.0", True),
    ],
)
def test_an_unknown_release_is_estimated_as_the_nearest_with_a_warning(asked, taken, is_it):
    chosen = choose_release(asked)
    assert chosen.release.version == taken
    assert [note.kind for note in chosen.notes] == ([] if is_it else ["warning"])
    for note in chosen.notes:
        assert f"axolotl {asked} is not known" in note.text
        assert f"those of {taken}" in note.text


def test_an_invalid_version_is_an_error():
    with pytest.raises(ConfigError, match="this is no version") as caught:
        choose_release("latest")
    assert caught.value.key == "--axolotl"
    assert caught.value.accepted == "0.19.0, 0.20.0, 0.21.0"


def test_libraries_that_are_not_the_pinned_ones():
    pins = NEWEST.pins
    assert find_other_libraries(pins, {"torch": "2.14.1+cpu", "transformers": "5.20.1", "numpy": "1.0"}) == {}
    others = find_other_libraries(pins, {"torch": "2.15.0", "transformers": "5.24.0", "peft": "0.21.2"})
    assert others == {"torch": ">=2.13.0,<2.15.0", "transformers": "==5.20.1"}


# --- what differs ------------------------------------------------------------------------------------------------------


def of_each(field: Any, **keys: Any) -> list[Any]:
    return [field(read(release.version, **keys)) for release in RELEASES]


def test_checkpointing_is_non_reentrant_from_0_21_on():
    def variant(recipe: Recipe) -> bool:
        return recipe.checkpointing.use_reentrant

    on = {"gradient_checkpointing": True}
    assert of_each(variant, **on) == [True, True, False]
    assert of_each(variant, **on, gradient_checkpointing_kwargs={"preserve_rng_state": False}) == [True, True, False]
    for named in (True, False):
        assert of_each(variant, **on, gradient_checkpointing_kwargs={"use_reentrant": named}) == [named] * 3
    assert of_each(variant, **on, deepspeed="deepspeed_configs/zero3_bf16.json") == [True] * 3
    assert of_each(variant, **on, unfrozen_parameters=["^lm_head.weight$"]) == [False] * 3


def test_embeddings_are_not_cast_and_cast_back_from_0_20_on():
    def casts(recipe: Recipe) -> tuple[bool, tuple[str, ...]]:
        return recipe.precision.upcast_embeddings, recipe.precision.kbit_skips

    names = ("embed_tokens", "lm_head")
    assert of_each(casts, **QLORA) == [(True, ()), (False, names), (False, names)]
    assert of_each(casts, **QLORA, embeddings_skip_upcast=True) == [(False, names)] * 3
    assert of_each(casts, **QLORA, embeddings_skip_upcast=False) == [(True, ()), (False, ()), (False, ())]
    assert of_each(casts, flash_attention=True) == [(True, ()), (False, ()), (False, ())]
    # nothing is cast back: embeddings stay fp32 in each
    assert of_each(casts) == [(True, ())] * 3


def test_the_head_of_gpt_neox_has_its_name_from_0_20_on():
    names = of_each(lambda recipe: recipe.model.embedding_names, base_model="EleutherAI/pythia-160m")
    assert names == [("embed_in", "embed_out"), ("embed_in", "lm_head"), ("embed_in", "lm_head")]


def test_a_packed_evaluation_row_is_of_eval_batch_size_from_0_21_on():
    def row(recipe: Recipe) -> tuple[int, int]:
        return recipe.evaluation.rows, recipe.evaluation.row_tokens

    assert of_each(row, **PACKED, eval_batch_size=8) == [(1, 2 * 1024), (1, 2 * 1024), (1, 8 * 1024)]
    assert of_each(row, **PACKED) == [(1, 2 * 1024)] * 3
    real = {**PACKED, "multipack_real_batches": True, "eval_batch_size": 8}
    assert of_each(row, **real) == [(2, 1024), (2, 1024), (8, 1024)]


def test_evaluation_at_the_start():
    def when(recipe: Recipe) -> tuple[bool, bool]:
        return recipe.evaluation.enabled, recipe.evaluation.before_training

    data = {"val_set_size": 0.1}
    assert of_each(when, **data, eval_steps=10) == [(True, True)] * 3
    assert of_each(when, **data, eval_strategy="no") == [(True, True), (True, True), (False, False)]
    # older releases do not know the key and drop it
    assert of_each(when, **data, eval_steps=10, eval_on_start=False) == [(True, True), (True, True), (True, False)]


def test_fsdp_without_a_version():
    keys = {"fsdp_config": {"offload_params": False}, "dp_shard_size": 2}
    assert of_each(lambda recipe: recipe.parallel.engine, **keys) == ["fsdp1", "fsdp2", "fsdp2"]


def test_kernels_that_the_release_installs():
    assert of_each(lambda recipe: recipe.kernels.liger_loss) == ["0.8.1", "0.8.1", "0.8.4"]
    assert of_each(lambda recipe: recipe.kernels.lora_gradients) == ["step", "parameter", "parameter"]


def test_experts_obey_double_quant_from_0_21_on():
    keys = {**QLORA, "quantize_moe_experts": True, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}
    keys = {**keys, "lora_target_linear": False, "lora_target_modules": ["q_proj"], "base_model": "Qwen/Qwen3-30B-A3B"}
    assert of_each(lambda recipe: recipe.quantisation.double_quant_experts, **keys) == [True, True, False]
    assert of_each(lambda recipe: recipe.quantisation.double_quant, **keys) == [False] * 3


def test_8_bit_experts_are_dropped_after_an_early_stop_from_0_20_on():
    keys = {**LORA, "load_in_8bit": True, "quantize_moe_experts": True, "base_model": "Qwen/Qwen3-30B-A3B"}
    keys = {**keys, "lora_target_linear": False, "lora_target_modules": ["q_proj"]}
    assert of_each(lambda recipe: recipe.quantisation.int8_experts_stay_unpacked, **keys) == [True, False, False]


def test_selective_checkpointing_that_saves_nothing():
    keys = {"gradient_checkpointing": True, "selective_checkpointing": {"save": []}}
    saved = of_each(lambda recipe: recipe.checkpointing.selective_save, **keys)
    assert saved == [("attention",), (), ()]
    assert of_each(lambda recipe: recipe.checkpointing.use_reentrant, **keys) == [False] * 3


def test_plugins_that_are_active_without_being_listed():
    keys = {"fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}, "fsdp_version": 2, "expert_parallel_size": 2}
    assert of_each(lambda recipe: recipe.parallel.mesh.expert, **keys) == [1, 1, 2]
    listed = {**keys, "plugins": ["axolotl.integrations.expert_parallel.ExpertParallelPlugin"]}
    assert of_each(lambda recipe: recipe.parallel.mesh.expert, **listed) == [2, 2, 2]


@pytest.mark.parametrize("name", ["liger.LigerPlugin", "axolotl.integrations.liger.LigerPlugin"])
def test_a_plugin_may_be_listed_by_its_short_name(name):
    assert of_each(lambda recipe: "rms_norm" in recipe.kernels.liger, plugins=[name], liger_rms_norm=True) == [True] * 3


# --- figures that changed ----------------------------------------------------------------------------------------------

GIB = 1 << 30
HEAD_ELEMENTS = 128256 * 4096
HEAD = TensorFact(
    name="lm_head.weight",
    module="lm_head",
    kind="parameter",
    role="weight",
    dtype="bfloat16",
    trainable=True,
    elements=HEAD_ELEMENTS,
    logical_elements=HEAD_ELEMENTS,
    nbytes=2 * HEAD_ELEMENTS,
)


def changed(recipe: Recipe, peak_bytes: int, *tensors: TensorFact) -> list[tuple[str, int, str]]:
    facts = ModelFacts(name="", model_type="llama", class_name="", config_source="", tensors=tensors, modules=())
    return [(note.key, note.bytes, note.text) for note in note_changed_figures(recipe, facts, peak_bytes)]


def test_8bit_lora_with_checkpointing_reports_a_changed_figure():
    keys = {**LORA, "load_in_8bit": True, "gradient_checkpointing": True}
    # hidden 4096 twice, heads 32 x 128, MLP 14336, 2 bytes each, 2 rows of 1024 tokens, 32 layers
    kept = (2 * 4096 + 4096 + 14336) * 2 * 2 * 1024 * 32
    ((key, nbytes, text),) = changed(read("0.21.0", **keys), 20 * GIB)
    assert (key, nbytes) == ("gradient_checkpointing", kept)
    assert text.startswith("until axolotl 0.20.0 the figure differs by more than a tenth")
    assert "`--axolotl 0.20.0` shows that figure" in text
    ((_, nbytes, text),) = changed(read("0.19.0", **keys), 20 * GIB)
    assert nbytes == kept
    assert text.startswith("from axolotl 0.21.0 on the figure differs")
    assert changed(read("0.21.0", **keys), 40 * GIB) == [], "less than a tenth"
    named = {**keys, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert changed(read("0.21.0", **named), 20 * GIB) == [], "each release does what is set"
    assert changed(read("0.21.0", **QLORA, gradient_checkpointing=True), 20 * GIB) == []


def test_a_trained_head_with_ligers_fused_loss_reports_a_changed_figure():
    keys = {"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_fused_linear_cross_entropy": True}
    ((key, nbytes, _),) = changed(read("0.21.0", **keys), 20 * GIB, HEAD)
    # in bf16 and in fp32
    assert (key, nbytes) == ("liger_fused_linear_cross_entropy", HEAD_ELEMENTS * (2 + 4))
    assert changed(read("0.21.0", **keys), 60 * GIB, HEAD) == []
    assert changed(read("0.21.0", **keys), 20 * GIB) == [], "the head is frozen"
