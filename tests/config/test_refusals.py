"""All reasons why a run is impossible are reported at once, and most of them do not change the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.__main__ import main
from axmem_trace.config.reader import read_recipe
from axmem_trace.config.refusals import RULES
from axmem_trace.errors import ConfigError
from axmem_trace.report import Report

BASE: dict[str, Any] = {
    "micro_batch_size": 1,
    "sequence_len": 64,
    "learning_rate": 1e-4,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "datasets": [{"path": "d", "type": "alpaca"}],
}
NEUTRAL: dict[str, dict[str, Any]] = {
    "sharegpt": {"datasets": [{"path": "d", "type": "sharegpt"}, {"path": "e", "type": "sharegpt:chat"}]},
    "evaluation without data": {"eval_steps": 10, "val_set_size": 0},
    "patience": {"early_stopping_patience": 3},
    "saving": {"save_steps": 5, "saves_per_epoch": 1},
    "warmup": {"warmup_steps": 5, "warmup_ratio": 0.1},
    "the Hub": {"push_dataset_to_hub": "a/b"},
    "no template": {"chat_template": "jinja"},
    "gone": {"rope_scaling": {"type": "linear"}, "unsloth_rope": True, "save_safetensors": False},
    "an empty learning rate": {"learning_rate": None},
    "text as a truth value": {"train_on_inputs": "perhaps"},
}
"""Keys that axolotl refuses and that do not change memory, by a name."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_tiny_model("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def plain(model) -> Report:
    return axmem_trace.estimate({**BASE, "base_model": model}, hub="never")


def test_a_plain_run_has_no_refusal(plain):
    assert plain.refusals == ()


@pytest.mark.parametrize("case", NEUTRAL)
def test_refused_keys_without_effect_on_memory_keep_the_figures(case, model, plain):
    report = axmem_trace.estimate({**BASE, "base_model": model, **NEUTRAL[case]}, hub="never")
    assert report.refusals
    assert all(refusal.reason and refusal.key for refusal in report.refusals)
    assert report.peak == plain.peak
    assert report.buckets == plain.buckets


@pytest.mark.parametrize(
    ("keys", "way_out"),
    [
        ({"activation_offloading": True}, {"activation_offloading": True, "gradient_checkpointing": True}),
        (
            {
                "eval_steps": 5,
                "val_set_size": 0.1,
                "sample_packing": True,
                "eval_table_size": 5,
                "eval_sample_packing": True,
                "attn_implementation": "flash_attention_2",
            },
            {
                "eval_steps": 5,
                "val_set_size": 0.1,
                "sample_packing": True,
                "eval_table_size": 5,
                "eval_sample_packing": False,
                "attn_implementation": "flash_attention_2",
            },
        ),
        ({"attn_implementation": "flash"}, {"attn_implementation": "flash_attention_2"}),
        ({"optimizer": "ao_adamw_8bit"}, {"optimizer": "adamw_torch_8bit"}),
        ({"adapter": "qlora"}, {"adapter": "qlora", "load_in_4bit": True}),
        ({"gradient_checkpointing": "unsloth"}, {"gradient_checkpointing": "offload"}),
        ({"tokens": ["<a>"]}, {"tokens": ["<a>"], "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
)
def test_otherwise_the_figures_are_those_of_the_remedy(keys, way_out, model):
    refused = axmem_trace.estimate({**BASE, "base_model": model, **keys}, hub="never")
    resolved = axmem_trace.estimate({**BASE, "base_model": model, **way_out}, hub="never")
    assert not resolved.refusals
    assert "the figures are with" in refused.refusals[0].reason
    assert refused.peak == resolved.peak


WITH_CONFIG = {"fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
"""Without a block axolotl stops."""


def test_lora_kernels_with_fsdp1_have_figures_without_the_kernels(model):
    fsdp = {**BASE, "base_model": model, "fsdp": ["full_shard", "auto_wrap"], **WITH_CONFIG}
    keys = {"lora_mlp_kernel": True, "lora_o_kernel": True}
    refused = axmem_trace.estimate({**fsdp, **keys}, hub="never", axolotl="0.19.0")
    resolved = axmem_trace.estimate(fsdp, hub="never", axolotl="0.19.0")
    (refusal,) = refused.refusals
    assert "not compatible with FSDP1 (the figures are without them)" in refusal.reason
    assert (refused.buckets, refused.peak.counted_bytes) == (resolved.buckets, resolved.peak.counted_bytes)


def test_accumulation_that_a_layerwise_optimizer_refuses_has_figures(model):
    layerwise = {"adapter": None, "optimizer": "galore_adamw_layerwise", "optim_target_modules": ["q_proj"]}
    accumulated = {**layerwise, "gradient_accumulation_steps": 2}
    once = axmem_trace.estimate({**BASE, "base_model": model, **layerwise}, hub="never")
    twice = axmem_trace.estimate({**BASE, "base_model": model, **accumulated}, hub="never")
    assert not once.refusals
    (refusal,) = twice.refusals
    assert refusal.key == "gradient_accumulation_steps"
    # The second micro-batch is allocated together with the first: input_ids, attention_mask, labels and positions,
    # int64, 1 x 64.
    assert twice.peak.allocated_bytes - once.peak.allocated_bytes == 4 * 8 * 64
    assert twice.buckets.optimizer == once.buckets.optimizer
    assert twice.buckets.gradients == once.buckets.gradients


def test_old_text_values_of_fsdp_are_read_as_a_list(model):
    text = {"fsdp": "full_shard auto_wrap", **WITH_CONFIG}
    refused = axmem_trace.estimate({**BASE, "base_model": model, **text}, hub="never", axolotl="0.19.0")
    assert [refusal.key for refusal in refused.refusals] == ["fsdp"]
    assert "a list (the figures are with `fsdp: [full_shard, auto_wrap]`)" in refused.refusals[0].reason
    listed = {"fsdp": ["full_shard", "auto_wrap"], **WITH_CONFIG}
    resolved = axmem_trace.estimate({**BASE, "base_model": model, **listed}, hub="never", axolotl="0.19.0")
    assert (refused.buckets, refused.peak.counted_bytes) == (resolved.buckets, resolved.peak.counted_bytes)


def test_a_removed_key_is_a_reason_without_a_warning(model):
    keys = {"unsloth_lora_mlp": True, "unsloth_rope": False}
    recipe = read_recipe({**BASE, "base_model": model, **keys}, hub="never")
    assert [note.key for note in recipe.refusals] == ["unsloth_lora_mlp"]
    assert [note.kind for note in recipe.notes if note.key == "unsloth_lora_mlp"] == ["refused"]
    assert [note.key for note in recipe.notes if note.kind == "warning" and "unsloth" in note.key] == ["unsloth_rope"]


def test_fsdp_wrapping_is_refused_once_if_axolotl_no_longer_has_the_list(model):
    text = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    recipe = read_recipe({**BASE, "base_model": model, **text}, hub="never", axolotl="0.21.0")
    about = [note for note in recipe.notes if note.key == "fsdp"]
    assert [note.kind for note in about] == ["refused"]
    assert "was removed together with FSDP1" in about[0].text


@pytest.mark.parametrize(
    "keys",
    [
        {"adapter": None, "load_in_8bit": True},
        {"adapter": "qlora", "load_in_8bit": True},
        {"cut_cross_entropy": True, "chunked_cross_entropy": True},
        {"base_model": "/models/of/somebody"},
        {"optimizer": "adamm"},
        {"lora_target_modules": ["q_(proj"]},
        {"sdp_attention": True, "attn_implementation": "flash_attention_2"},
        {"micro_batch_size": 0},
    ],
)
def test_without_known_memory_there_are_no_figures_and_all_reasons_are_reported(keys, model):
    patience = {"early_stopping_patience": 3, "warmup_steps": 5, "warmup_ratio": 0.1}
    with pytest.raises(ConfigError) as caught:
        axmem_trace.estimate({**BASE, "base_model": model, **keys, **patience}, hub="never")
    reported = {error.key for error in (caught.value, *caught.value.others)}
    assert {"early_stopping_patience", "warmup_ratio"} < reported
    assert str(caught.value).startswith(f"{len(reported)} reasons")


def test_a_configuration_without_data_gets_a_warning(model):
    keys = {key: value for key, value in BASE.items() if key not in ("datasets", "learning_rate")}
    recipe = read_recipe({**keys, "base_model": model}, hub="never")
    assert not recipe.refusals
    assert any(note.kind == "warning" and note.key == "datasets" for note in recipe.notes)
    recipe = read_recipe({**keys, "base_model": model, "datasets": BASE["datasets"]}, hub="never")
    assert [refusal.key for refusal in recipe.refusals] == ["learning_rate"]


def test_a_consequence_of_a_reason_is_not_a_separate_reason(model):
    with pytest.raises(ConfigError) as caught:
        read_recipe({**BASE, "base_model": model, "lora_r": "many", "sequence_len": [1]}, hub="never")
    assert {error.key for error in (caught.value, *caught.value.others)} == {"lora_r", "sequence_len"}
    assert len(caught.value.others) == 1


def test_two_rules_of_one_key_do_not_conflict(model):
    """`early_stopping_patience` divides by a value that may be missing, which another rule of the same key reports."""
    for keys in ({"save_steps": 5}, {"eval_steps": 5, "val_set_size": 0.1}, {}):
        recipe = read_recipe({**BASE, "base_model": model, "early_stopping_patience": 1, **keys}, hub="never")
        assert [refusal.key for refusal in recipe.refusals] == ["early_stopping_patience"]


def test_each_rule_says_which_figures_there_are():
    for rule in RULES:
        assert not (rule.figures_with and rule.decides_memory), rule.problem
        assert len(rule.figures_with) <= 1, rule.problem


# --- the command line --------------------------------------------------------------------------------------------------


def write(tmp_path: Path, model: str, **keys: Any) -> str:
    path = tmp_path / "run.yml"
    path.write_text(
        "".join(f"{key}: {json.dumps(value)}\n" for key, value in {"base_model": model, **BASE, **keys}.items())
    )
    return str(path)


def test_json_has_figures_and_reasons_and_the_exit_code_is_2(tmp_path, model, plain, capsys):
    config = write(tmp_path, model, datasets=[{"path": "d", "type": "sharegpt"}], early_stopping_patience=2)
    assert main([config, "--offline", "--format", "json", "--gpu", "80GiB"]) == 2
    captured = capsys.readouterr()
    contents = json.loads(captured.out)
    assert contents["peak"]["allocated_bytes"] == plain.peak.allocated_bytes
    assert contents["fits"] is True
    first, second = contents["refusals"]
    assert (first["key"], first["line"], first["value"]) == ("datasets.0.type", 9, "sharegpt")
    assert (second["key"], second["line"], second["value"]) == ("early_stopping_patience", 10, "2")
    assert all({"key", "line", "value", "reason"} <= refusal.keys() for refusal in (first, second))
    assert not [note for note in contents["notes"] if note["kind"] == "refused"]
    assert "2 reasons (lines 9, 10)" in captured.err
    assert "sharegpt" in captured.err
    assert Report.from_json(captured.out).refusals[0].value == "sharegpt"


def test_text_has_the_reasons_with_the_verdict(tmp_path, model, capsys):
    config = write(tmp_path, model, warmup_steps=2, warmup_ratio=0.1, micro_batch_sise=2)
    assert main([config, "--offline", "--full"]) == 2
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    verdict = next(index for index, line in enumerate(lines) if line.startswith("needs "))
    assert lines[verdict + 2].startswith("THIS RUN CAN'T RUN: 1 reason (line 11)")
    assert lines.index("Warnings") < lines.index("Alive at the peak")
    assert "did you mean `micro_batch_size`?" in " ".join(captured.out.split())
    assert captured.err.splitlines() == [f"axmem_trace: {config}: this run can't run: 1 reason (line 11)"]


def test_a_card_that_is_too_small_does_not_hide_the_reasons(tmp_path, model, capsys):
    config = write(tmp_path, model, datasets=[{"path": "d", "type": "sharegpt"}])
    assert main([config, "--offline", "--gpu", "1GiB", "--assume", "cuda_context_bytes=1020MiB"]) == 2
    assert capsys.readouterr().out.splitlines()[0] == "THIS RUN CAN'T RUN: 1 reason (line 9)"
    assert main([write(tmp_path, model), "--offline", "--gpu", "1GiB", "--assume", "cuda_context_bytes=1020MiB"]) == 3
