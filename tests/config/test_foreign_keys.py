"""Keys that axolotl does not know: names of other trainers, and typing errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from axmem_trace.config.axolotl import RELEASES
from axmem_trace.config.document.foreign_keys import ADVICE, SLIPPED_KEYS_NEVER_PROPOSED, nearest_key
from axmem_trace.config.document.foreign_names import SAME
from axmem_trace.config.document.key_table import KEYS, keys_of, siblings
from axmem_trace.config.document.old_names import GONE_KEYS
from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError

PLAIN = "base_model: meta-llama/Llama-3.2-1B\ndatasets: [{path: d, type: alpaca}]\nlearning_rate: 1e-4\n"


def note_of(tmp_path: Path, text: str, key: str) -> tuple[str, int, str]:
    path = tmp_path / "c.yml"
    path.write_text(PLAIN + text, encoding="utf-8")
    (note,) = [note for note in read_recipe(path, hub="never").notes if note.key == key]
    return note.kind, note.line, note.text


def test_the_tables_map_unknown_keys_to_known_keys():
    of_all_releases = set.intersection(*(set(keys_of(release.version)) for release in RELEASES))
    assert not {*SAME, *ADVICE} & {*of_all_releases, *GONE_KEYS}
    assert not SAME.keys() & ADVICE.keys()
    assert set(SAME.values()) <= set(KEYS)
    assert len(SAME) + len(ADVICE) > 250


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mirco_batch_size", "micro_batch_size"),
        ("sequense_len", "sequence_len"),
        ("loraR", "lora_r"),
        ("gradient-accumulation-steps", "gradient_accumulation_steps"),
        ("warmup_step", "warmup_steps"),
        ("trl.num_generation", "trl.num_generations"),
        ("load_in_4_bit", "load_in_4bit"),
    ],
)
def test_a_typing_error_gets_a_suggestion(typed, meant):
    assert nearest_key(typed, siblings(typed)) == meant


@pytest.mark.parametrize(
    "typed",
    [
        "push_to_hub",
        "val_datasets",
        "use_peft",
        "quantization_config",
        "dataloader_persistent_workers",
        "zzz",
        "load_in_16bit",
        "bf32",
        "lora_q_kernel",
        "trust_remote_cod",
        "push_dataset_to_hubb",
        "eval_loss",
        "num_layers",
    ],
)
def test_a_word_that_is_only_similar_gets_no_suggestion(typed):
    assert nearest_key(typed, siblings(typed)) == ""


def test_no_suggestion_is_a_key_that_uploads_or_runs_code():
    assert not SLIPPED_KEYS_NEVER_PROPOSED & {*SAME.values()} - {"trust_remote_code"}
    assert SAME["push_to_hub"] == "hub_model_id"
    assert SAME["val_datasets"] == SAME["eval_dataset"] == "test_datasets"


@pytest.mark.parametrize(
    ("text", "key", "kind", "words"),
    [
        ("val_dataset: [x]\n", "val_dataset", "warning", "`test_datasets`"),
        ("push_to_hub: true\n", "push_to_hub", "ignored", "`hub_model_id`"),
        ("use_peft: true\n", "use_peft", "warning", "`adapter: lora`"),
        ("quantization_config: {bits: 4}\n", "quantization_config", "warning", "`gptq: true`"),
        ("dataloader_persistent_workers: true\n", "dataloader_persistent_workers", "ignored", "host memory"),
        ("per_device_train_batch_size: 8\n", "per_device_train_batch_size", "warning", "`micro_batch_size`"),
        ("micro_batch_sise: 8\n", "micro_batch_sise", "warning", "did you mean `micro_batch_size`?"),
        ("gibberish: 8\n", "gibberish", "warning", "does not know `gibberish` and drops it"),
        ("use_unsloth: false\n", "use_unsloth", "ignored", "no Unsloth"),
        ("yes: 1\n", "True", "warning", "does not know `True`"),
    ],
)
def test_an_unknown_key_that_may_change_memory_is_a_warning(tmp_path, text, key, kind, words):
    found, line, reported = note_of(tmp_path, text, key)
    assert (found, line) == (kind, 0 if key == "True" else 4)
    assert words in reported
    assert "did you mean" not in reported or words in reported


@pytest.mark.parametrize("setting", ["micro_batch_sise=4", "lora.r=8", "trl.bata=1", "fsdp_config.nosuch=1", "zzz=1"])
def test_a_key_of_set_that_axolotl_does_not_know_is_an_error(tmp_path, setting):
    path = tmp_path / "c.yml"
    path.write_text(PLAIN + "trl: {beta: 0.1}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, overrides=[setting], hub="never")
    text = str(caught.value)
    assert text.startswith("--set " + ("lora" if setting.startswith("lora") else setting.partition("=")[0]))
    assert str(path) not in text
    assert "no such key" in text


def test_fields_of_a_dataset(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(PLAIN.replace("type: alpaca", "type: alpaca, splits: train, lang: de"), encoding="utf-8")
    notes = {note.key: note for note in read_recipe(path, hub="never").notes}
    assert notes["datasets.0.splits"].kind == "warning"
    assert "did you mean `split`?" in notes["datasets.0.splits"].text
    assert (notes["datasets.0.lang"].kind, notes["datasets.0.lang"].line) == ("ignored", 2)
    with pytest.raises(ConfigError, match=r"^--set datasets\.0\.tpye: axolotl knows no such field"):
        read_recipe(path, overrides=["datasets.0.tpye=alpaca"], hub="never")
