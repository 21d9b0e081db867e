"""Behaviour that the user may not expect is reported, with the line of the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError

LLAMA = "base_model: meta-llama/Llama-3.1-8B\nmicro_batch_size: 2\nsequence_len: 2048\nlearning_rate: 0.0001\n"
DATA = "datasets: [{path: d, type: alpaca}]\n"
LORA = "adapter: lora\nlora_r: 8\nlora_target_linear: true\n"
QLORA = "adapter: qlora\nload_in_4bit: true\nlora_r: 8\nlora_target_linear: true\n"
PACKED = "sample_packing: true\n"
LIGER = "plugins:\n  - axolotl.integrations.liger.LigerPlugin\n"


def notes(tmp_path: Path, text: str, **options) -> list[tuple[str, str, int, str]]:
    path = tmp_path / "c.yml"
    path.write_text(text, encoding="utf-8")
    recipe = read_recipe(path, hub="never", **options)
    return [(note.kind, note.key, note.line, note.text) for note in recipe.notes]


@pytest.mark.parametrize(
    ("text", "kind", "key", "line", "words"),
    [
        (LLAMA + LORA + "load_in_4bit: true\n", "warning", "load_in_4bit", 8, "is not quantised"),
        (LLAMA + "liger_rms_norm: true\n", "warning", "liger_rms_norm", 5, "its plugin is not listed"),
        (LLAMA + "cut_cross_entropy: true\n", "warning", "cut_cross_entropy", 5, "its plugin is not listed"),
        (LLAMA + "lora_exclude_modules: [lm_head]\n", "ignored", "lora_exclude_modules", 5, "no effect"),
        (LLAMA + "gradient_chekpointing: true\n", "warning", "gradient_chekpointing", 5, "gradient_checkpointing"),
        (LLAMA + "trl:\n  btea: 1\n", "warning", "trl.btea", 6, "trl.beta"),
        ("base_model: 01-ai/Yi-6B\n", "warning", "base_model", 1, "not a copy of the published file"),
        ("base_model: internlm/internlm3-8b-instruct\n", "warning", "base_model", 1, "Check with --hub"),
        (LLAMA, "warning", "attn_implementation", 1, "residual stream"),
        (LLAMA + PACKED, "warning", "sample_packing", 5, "without attn_implementation"),
        (LLAMA + "unfrozen_parameters: ['lm_head.weight[:9]']\n", "warning", "unfrozen_parameters", 5, "range"),
        (LLAMA + "batch_size: 8\n", "warning", "batch_size", 5, "has no effect"),
        (LLAMA + "deepspeed: elsewhere/mine.json\n", "not_modelled", "deepspeed", 5, "content is unknown"),
    ],
)
def test_a_warning_is_reported_with_its_line(tmp_path, text, kind, key, line, words):
    found = [note for note in notes(tmp_path, text) if note[:3] == (kind, key, line)]
    assert len(found) == 1
    assert words in found[0][3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LLAMA, "not a copy of the published file"),
        (LLAMA + QLORA, "is not quantised"),
        (LLAMA + LIGER + "liger_rms_norm: true\n", "plugin is not listed"),
        (LLAMA + "attn_implementation: flash_attention_2\n", "residual stream"),
        (LLAMA + LORA, "residual stream"),
        (LLAMA + PACKED + "attn_implementation: flash_attention_2\n", "without attn_implementation"),
    ],
)
def test_no_warning_is_reported_without_a_reason(tmp_path, text, words):
    assert not [note for note in notes(tmp_path, text) if words in note[3]]


def test_with_strict_unknown_and_unmodelled_keys_are_errors(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(LLAMA + "foo: 1\ndeepspeed: elsewhere/mine.json\n" + DATA, encoding="utf-8")
    with pytest.raises(ConfigError, match="does not know `foo`") as caught:
        read_recipe(path, hub="never", strict=True)
    assert [error.line for error in (caught.value, *caught.value.others)] == [5, 6]


@pytest.mark.parametrize("gpu", ["T4", "V100"])
def test_bf16_auto_is_bf16_on_a_card_that_emulates_it(tmp_path, gpu):
    """torch's `is_bf16_supported` is true there, so axolotl's `resolve_dtype` turns bf16 on."""
    path = tmp_path / "c.yml"
    path.write_text(LLAMA + LORA + "bf16: auto\n", encoding="utf-8")
    precision = read_recipe(path, hub="never", gpu=gpu).precision
    assert (precision.load_dtype, precision.autocast_dtype, precision.grad_scaler) == ("bfloat16", "bfloat16", False)
    assert any(note.key == "bf16" and "emulates" in note.text for note in read_recipe(path, hub="never", gpu=gpu).notes)
    modern = read_recipe(path, hub="never", gpu="A100-80GB").precision
    assert (modern.load_dtype, modern.autocast_dtype, modern.grad_scaler) == ("bfloat16", "bfloat16", False)


def test_bf16_set_on_a_card_without_it_is_a_warning(tmp_path):
    found = notes(tmp_path, LLAMA + LORA + "bf16: true\n", gpu="T4")
    assert any(kind == "warning" and key == "bf16" and line == 8 for kind, key, line, _ in found)


@pytest.mark.parametrize(
    ("line", "gpu", "words"),
    [
        ("fp8: true", "A100-80GB", "fp8 is not supported on A100"),
        ("attn_implementation: fp8", "A100-80GB", "fp8 attention needs compute capability 9.0"),
        ("attn_implementation: sage", "T4", "SageAttention does not run"),
    ],
)
def test_features_that_the_target_gpu_does_not_support_are_refused(tmp_path, line, gpu, words):
    path = tmp_path / "c.yml"
    path.write_text(LLAMA + line + "\n" + DATA, encoding="utf-8")
    recipe = read_recipe(path, hub="never", gpu=gpu)
    (refusal,) = [refusal for refusal in recipe.refusals if words in refusal.text]
    assert recipe.written[refusal.key].line == 5
    assert not read_recipe(path, hub="never", gpu="80GiB").refusals  # of a bare size nothing is known


def test_a_message_line_by_line(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(LLAMA.replace("micro_batch_size: 2", "micro_batch_size: two") + DATA, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, hub="never")
    assert str(caught.value).splitlines() == [
        f"{path}:2: micro_batch_size: the value has the wrong type",
        "  value: 'two'",
        "  accepted: a whole number",
        "  what to do: correct the value",
    ]


def test_remarks_about_the_card_are_warnings(tmp_path):
    assert [note for note in notes(tmp_path, LLAMA, gpu="A100-80GB") if note[1] == "--gpu"] == []
    (ambiguous,) = [note for note in notes(tmp_path, LLAMA, gpu="A100") if note[1] == "--gpu"]
    assert (ambiguous[0], ambiguous[2]) == ("warning", 0)
    assert "A100-80GB (79.15 GiB) is used" in ambiguous[3]
