"""The source of a key: given twice, by an old name, on the command line, on standard input, or as an invalid path."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from axmem_trace.cli.terminal import refuse_unwritable
from axmem_trace.config.document.yaml_reader import parse_document, read_document
from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import AxmemError, ConfigError

PLAIN = "base_model: meta-llama/Llama-3.2-1B\ndatasets: [{path: d, type: alpaca}]\nlearning_rate: 1e-4\n"
LONG = "x" * 300


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yml"
    path.write_text(PLAIN + text, encoding="utf-8")
    return path


# --- twice ------------------------------------------------------------------------------------------------------------


def test_the_last_value_of_a_repeated_key_counts(tmp_path):
    path = write(tmp_path, "micro_batch_size: 2\nsequence_len: 64\nmicro_batch_size: 3\nmicro_batch_size: 5\n")
    recipe = read_recipe(path, hub="never")
    assert recipe.batch.rows == 5
    assert recipe.written["micro_batch_size"].line == 7
    (note,) = [note for note in recipe.notes if note.key == "micro_batch_size"]
    assert (note.kind, note.line) == ("warning", 7)
    assert "lines 4, 6 are overridden by line 7" in note.text
    assert not recipe.refusals


def test_nested_and_whole_blocks():
    text = "a:\n  x: 1\n  x: 2\n  y: 3\nb: {k: 1, k: 2}\na:\n  x: 4\n"
    document = parse_document(text)
    assert document.values == {"a": {"x": 4}, "b": {"k": 2}}
    assert document.duplicates == {"a": (1, 6), "b.k": (5, 5)}
    assert document.lines == {"a": 6, "a.x": 7, "b": 5, "b.k": 5}


def test_lines_of_a_list_that_is_overridden_are_removed():
    document = parse_document("d:\n  - k: 1\n  - k: 2\nd:\n  - k: 3\n")
    assert document.lines == {"d": 4, "d.0": 5, "d.0.k": 5}


def test_a_merged_block_may_have_the_same_keys():
    document = parse_document("base: &b {x: 1}\nc:\n  x: 2\n  <<: *b\n")
    assert document.values["c"] == {"x": 2}
    assert (document.duplicates, document.lines["c.x"]) == ({}, 3)


def test_with_strict_it_is_an_error(tmp_path):
    path = write(tmp_path, "sequence_len: 64\nsequence_len: 128\n")
    with pytest.raises(ConfigError, match="line 4 is overridden by line 5") as caught:
        read_recipe(path, hub="never", strict=True)
    assert (caught.value.key, caught.value.line) == ("sequence_len", 5)


def test_values_that_set_overrides_are_not_reported(tmp_path):
    path = write(tmp_path, "sequence_len: 64\nsequence_len: 128\n")
    recipe = read_recipe(path, overrides=["sequence_len=32"], hub="never", strict=True)
    assert recipe.batch.row_tokens == 64  # padded to a multiple of 64
    assert not [note for note in recipe.notes if "overridden" in note.text]


# --- by another name, or on the command line ---------------------------------------------------------------------------


def test_a_message_names_the_key_as_the_user_wrote_it(tmp_path):
    path = write(tmp_path, "sequence_parallel_degree: 2\nmodel_type: [1]\n")
    with pytest.raises(ConfigError) as caught:  # 0.19 takes context parallelism with FlashAttention-2 alone
        read_recipe(path, hub="never", axolotl="0.19.0")
    places = {(error.key, error.line) for error in (caught.value, *caught.value.others)}
    assert places == {("sequence_parallel_degree", 4), ("model_type", 5)}


@pytest.mark.parametrize(
    ("setting", "start"),
    [
        ("micro_batch_size=-1", "--set micro_batch_size: the value must be at least 1"),
        ("base_model=", "--set base_model: "),
        ("sequence_len=many", "--set sequence_len: the value has the wrong type"),
        ("datasets.3.type=alpaca", "--set datasets.3.type: '3' is no item of the list"),
        ("optimizer=adamm", "--set optimizer: "),
    ],
)
def test_an_error_of_set_names_the_flag_and_no_line(tmp_path, setting, start):
    path = write(tmp_path, "micro_batch_size: 2\nsequence_len: 64\noptimizer: sgd\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, overrides=[setting], hub="never")
    assert str(caught.value).startswith(start)
    assert str(path) not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"gpu": "RTX 4091"}, "--gpu RTX 4091: "),
        ({"assumptions": ["rwos=1"]}, "--assume rwos: `--assume` has no key of this name"),
        ({"assumptions": {"rows": "x"}}, "--assume rows: not a value of this key"),
    ],
)
def test_an_error_of_another_option_names_this_option(tmp_path, options, start):
    path = write(tmp_path, "micro_batch_size: 2\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, hub="never", **options)
    assert str(caught.value).startswith(start)
    assert str(path) not in str(caught.value)


def test_all_options_are_checked_at_once(tmp_path):
    path = write(tmp_path, "micro_batch_size: 0\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, overrides=["nosuch=1"], assumptions=["rows=x"], gpu="RTX 4091", hub="never")
    text = str(caught.value)
    assert text.startswith("4 reasons")
    for part in ("--set nosuch: ", "--gpu RTX 4091: ", "--assume rows: ", f"{path}:4: micro_batch_size: "):
        assert part in text


def test_used_values_have_no_line_if_set_gave_them(tmp_path):
    path = write(tmp_path, "optimizer: sgd\n")
    reason = read_recipe(path, overrides=["optimizer=adamw_torch"], hub="never").reasons["optimizer.name"]
    assert (reason.origin, reason.line) == ("override", 0)


def test_set_reaches_into_lists(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(PLAIN.replace("alpaca", "sharegpt"), encoding="utf-8")
    (refusal,) = read_recipe(path, hub="never").refusals
    assert refusal.key == "datasets.0.type"
    assert not read_recipe(path, overrides=["datasets.0.type=chat_template"], hub="never").refusals


# --- standard input, and pipes -----------------------------------------------------------------------------------------


def test_a_dash_reads_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"base_model: a\nb: 1\n")))
    document = read_document("-")
    assert (document.name, document.values, document.lines["b"]) == ("<stdin>", {"base_model": "a", "b": 1}, 2)
    assert read_document("/dev/stdin").values == document.values  # one stream, read once and used twice
    monkeypatch.setattr(sys, "stdin", io.StringIO("c: 1\n"))
    assert read_document(Path("-")).values == {"c": 1}


def test_a_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a: 1\n",))
    writer.start()
    assert read_document(pipe).values == {"a": 1}
    writer.join()


def test_standard_input_is_bounded(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"#" * (2 << 20))))
    with pytest.raises(ConfigError, match="too large"):
        read_document("-")


# --- paths that are none -----------------------------------------------------------------------------------------------

PATH_KEYS = tuple(
    """
    base_model base_model_config lora_model_dir deepspeed output_dir dataset_prepared_path resume_from_checkpoint
    tokenizer_config
    """.split()
)
BAD_PATHS = (LONG, f"/{LONG}/x", "/" + "a/" * 3000, "~nobody-here/x", "a\0b", "\udcff")


@pytest.mark.parametrize("name", BAD_PATHS)
@pytest.mark.parametrize("key", PATH_KEYS)
def test_an_error_of_the_file_system_is_not_a_traceback(key, name):
    keys = {
        "base_model": "meta-llama/Llama-3.2-1B",
        "learning_rate": 1e-4,
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    if not key.startswith("base_model"):
        read_recipe({**keys, key: name}, hub="never")
        return
    with pytest.raises(ConfigError) as caught:
        read_recipe({**keys, key: name}, hub="never")
    assert caught.value.key == key


@pytest.mark.parametrize("name", BAD_PATHS)
def test_a_configuration_of_such_a_name(name):
    with pytest.raises(ConfigError) as caught:
        read_document(name)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", [LONG, f"{LONG}/x", "a\0b"])
def test_an_output_of_such_a_name(tmp_path, name):
    with pytest.raises(AxmemError, match="cannot be written"):
        refuse_unwritable(tmp_path / name)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        read_document(tmp_path / "c.yml")
    with pytest.raises(AxmemError):
        refuse_unwritable(tmp_path / "report")
