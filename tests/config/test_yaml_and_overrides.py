"""YAML of any kind, `--set` and `--assume`: values are read as in axolotl, or there is one message with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axmem_trace.config.assumption_table import ASSUMPTIONS
from axmem_trace.config.document.key_table import KEYS
from axmem_trace.config.document.overrides import apply_overrides
from axmem_trace.config.document.yaml_reader import MAX_BYTES, parse_document, read_document
from axmem_trace.config.reader import read_recipe
from axmem_trace.errors import ConfigError

BASE: dict[str, Any] = {
    "base_model": "meta-llama/Llama-3.2-1B",
    "datasets": [{"path": "a", "type": "alpaca"}],
    "learning_rate": 1e-4,
    "micro_batch_size": 2,
    "sequence_len": 512,
}


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, name="c.yml")
    return caught.value


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 0, "empty"),
        ("# only a comment\n", 0, "empty"),
        ("- a\n- b\n", 1, "not a mapping"),
        ("just text\n", 1, "not a mapping"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: [1, 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "several documents"),
        ("? [a, b]\n: 1\n", 1, "a key must be a word"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", 1, "nested deeper than 32"),
        (BOMB, 0, "aliases expand"),
        ("a: &a [*a]\n", 0, "aliases expand"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "not valid YAML"),
        ("a: 2024-99-99\n", 0, "cannot be read"),
    ],
)
def test_broken_yaml_is_one_message(text, line, problem):
    error = refusal(text)
    assert problem in error.problem
    if line:
        assert error.line == line


def test_words_and_numbers_are_read_as_in_yaml_1_1():
    document = parse_document("a: yes\nb: 2e-4\nc: 2.0e-4\nd: 010\ne: ~\nf: .nan\ng: 2024-01-02\n1: x\n")
    assert document.values["a"] is True
    assert document.values["b"] == "2e-4"
    assert document.values["c"] == 2e-4
    assert document.values["d"] == 8
    assert document.values["e"] is None
    assert document.values["f"] != document.values["f"]
    assert str(document.values["g"]) == "2024-01-02"


def test_lines_of_nested_keys_list_items_and_merged_keys():
    document = parse_document("base: &b\n  x: 1\nc:\n  <<: *b\n  y: 2\nd:\n  - k: 3\n")
    assert document.values["c"] == {"x": 1, "y": 2}
    assert document.lines["c.y"] == 5
    assert document.lines["d.0.k"] == 7


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"a: \xff\xfe\n", "not UTF-8"), (b"a: 1\n" + b"#" * MAX_BYTES, "at most"), (b"", "empty")],
)
def test_files_that_are_not_a_configuration(tmp_path: Path, content, problem):
    path = tmp_path / "c.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        read_document(path)


def test_a_file_that_does_not_exist_or_is_a_directory(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        read_document(tmp_path / "no.yml")
    with pytest.raises(ConfigError, match="a directory"):
        read_document(tmp_path)


def test_set_nests_with_dots_and_reads_yaml():
    values, given = apply_overrides({"a": {"b": 1}}, ["a.c=[1, x]", "d=null", "e.f.g=2.0e-4"])
    assert values == {"a": {"b": 1, "c": [1, "x"]}, "d": None, "e": {"f": {"g": 2e-4}}}
    assert given == {"a.c", "d", "e.f.g"}


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("a", "not of the form"),
        ("=1", "not of the form"),
        ("a..b=1", "an empty part"),
        ("x.y=1", "neither a mapping nor a list"),
        ("a=[1", "not valid YAML"),
    ],
)
def test_set_refuses(setting, problem):
    with pytest.raises(ConfigError, match=problem):
        apply_overrides({"x": 1}, [setting])


def test_set_takes_precedence_over_the_alias_in_the_file():
    recipe = read_recipe(
        {**BASE, "model_type": "LlamaForCausalLM"}, overrides=["type_of_model=AutoModelForCausalLM"], hub="never"
    )
    assert recipe.model.type_of_model == "AutoModelForCausalLM"


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("autocast=false", "precision.autocast", False),
        ("autocast=fp16", "precision.grad_scaler", True),
        ("autocast=false", "precision.output_dtype", "same"),
        ("output_dtype=same", "precision.output_dtype", "same"),
        ("adapter_dtype=bf16", "adapter.dtype", "bfloat16"),
        ("norm_dtype=fp32", "precision.norm_dtype", "float32"),
        ("embedding_dtype=bfloat16", "precision.embedding_dtype", "bfloat16"),
        ("optimizer_implementation=for_loop", "optimizer.implementation", "for-loop"),
        ("loss_path=shifted_copy", "loss.path", "shifted_copy"),
        ("rows=3", "batch.rows", 3),
        ("row_tokens=77", "batch.row_tokens", 77),
        ("allocator=default", "allocator.expandable_segments", False),
        ("cuda_context_bytes=500MiB", "gpu.context_bytes", 500 << 20),
        ("lora_kernels=[qkv, o]", "kernels.lora", frozenset({"qkv", "o"})),
    ],
)
def test_assume_sets_its_field(setting, path, value):
    recipe = read_recipe(BASE, assumptions=[setting], hub="never")
    group, name = path.split(".")
    assert getattr(getattr(recipe, group), name) == value
    key = setting.partition("=")[0]
    assert recipe.reasons[ASSUMPTIONS[key].field].text == f"--assume {key}"


def test_assume_router():
    assert read_recipe(BASE, assumptions=["router=worst"], hub="never").router == "worst"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("rwos=1", "did you mean `rows`"),
        ("rows=0", "out of range"),
        ("rows=x", "not a value"),
        ("autocast=int8", "not a value"),
        ("router=random", "not a value"),
        ("cuda_context_bytes=much", "is not a size"),
        ("allocator=foo:1", "allocator"),
        ("lora_kernels=gate", "no LoRA kernel"),
    ],
)
def test_assume_refuses(setting, problem):
    with pytest.raises(ConfigError) as caught:
        read_recipe(BASE, assumptions=[setting], hub="never")
    assert problem in str(caught.value)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["auto", "yes"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KEY_NAMES = st.sampled_from(sorted(name for name in KEYS if "." not in name))


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(KEY_NAMES, VALUES, min_size=1, max_size=4))
def test_no_value_of_any_key_gives_a_traceback(changes):
    try:
        recipe = read_recipe({**BASE, **changes}, hub="never")
    except ConfigError:
        return
    assert recipe.batch.rows >= 1


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_no_text_gives_a_traceback(text):
    try:
        values = parse_document(text).values
    except ConfigError:
        return
    assert isinstance(values, dict)
