"""The sources of a base model's configuration, their order, and the message if it is not found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axmem_trace.catalogue import find_base_model, lookup, sources
from axmem_trace.catalogue.sources import Look
from axmem_trace.errors import ConfigError

TINY = {"model_type": "llama", "hidden_size": 8, "vocab_size": 16}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """An empty cache, an empty working directory, and a Hub that fails the test when it is used unexpectedly."""
    for key in (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "TRANSFORMERS_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(lookup, "look_on_hub", lambda name, revision: pytest.fail("the Hub was asked"))


def write_config(directory: Path, config: object = TINY) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def write_cache(home: Path, name: str, commit: str, ref: str = "main", **fields: object) -> Path:
    repository = home / "hub" / ("models--" + name.replace("/", "--"))
    if ref:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return write_config(repository / "snapshots" / commit, TINY | fields)


def hub_returns(monkeypatch, config: dict | None, outcome: str = "no such repository"):
    look = Look("hub", outcome, config, "", "hub x") if config else Look("hub", outcome)
    monkeypatch.setattr(lookup, "look_on_hub", lambda name, revision: look)


def test_numbers_that_json_cannot_express_are_read_as_transformers_saves_them(tmp_path):
    limit = [0.0, {"__float__": "Infinity"}]
    path = write_config(tmp_path / "mamba2", TINY | {"time_step_limit": limit, "rope": {"__float__": "one"}})
    found = find_base_model(str(path), hub="never")
    assert list(found.config["time_step_limit"]) == [0.0, float("inf")]
    assert dict(found.config["rope"]) == {"__float__": "one"}


def test_directory_and_file_and_relative_to_the_yaml(tmp_path):
    path = write_config(tmp_path / "yaml" / "my-model")
    for name, base in [
        (str(path.parent), None),
        (str(path), None),
        ("my-model", tmp_path / "yaml"),
        ("./my-model/config.json", tmp_path / "yaml"),
    ]:
        found = find_base_model(name, hub="never", base_directory=base)
        assert found.source.startswith("directory ")
        assert Path(found.directory) == path.parent
        assert (found.model_type, found.text_model_type) == ("llama", "llama")


def test_a_directory_hides_the_catalogue(tmp_path):
    write_config(Path("Qwen/Qwen3-8B"))
    assert find_base_model("Qwen/Qwen3-8B", hub="never").config["hidden_size"] == 8


def test_the_cache_comes_before_the_catalogue(tmp_path):
    write_cache(tmp_path / "home", "Qwen/Qwen3-8B", "abc", hidden_size=24)
    found = find_base_model("Qwen/Qwen3-8B", hub="never")
    assert found.source.startswith("cache ")
    assert found.config["hidden_size"] == 24


def test_cache_revisions(tmp_path):
    home = tmp_path / "home"
    write_cache(home, "org/model", "aaa", hidden_size=1)
    write_cache(home, "org/model", "bbb", ref="v2", hidden_size=2)
    assert find_base_model("org/model", hub="never").config["hidden_size"] == 1
    assert find_base_model("org/model", hub="never", revision="v2").config["hidden_size"] == 2
    assert find_base_model("org/model", hub="never", revision="bbb").config["hidden_size"] == 2
    for escape in ("../refs/v2", "/etc", "nope", "a\0b"):
        with pytest.raises(ConfigError):
            find_base_model("org/model", hub="never", revision=escape)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"])
def test_cache_variables(tmp_path, monkeypatch, variable):
    write_cache(tmp_path / "elsewhere", "org/model", "aaa")
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere" / "hub"))
    assert find_base_model("org/model", hub="never").source.startswith("cache ")


def test_letter_case_is_ignored_and_the_canonical_id_is_reported():
    found = find_base_model("META-LLAMA/llama-3.1-8b", hub="never")
    assert found.name == "meta-llama/Llama-3.1-8B"
    assert "meta-llama/Llama-3.1-8B" in found.source


def test_an_alias_keeps_its_name_and_names_the_model_with_its_shapes():
    found = find_base_model("NousResearch/Meta-Llama-3.1-8B", hub="never")
    assert found.name == "NousResearch/Meta-Llama-3.1-8B"
    assert "meta-llama/Llama-3.1-8B" in found.source


def test_the_text_model_inside():
    assert find_base_model("google/gemma-3-27b-it", hub="never").text_model_type == "gemma3_text"


def test_another_revision_than_main_is_reported():
    assert "not revision 'abc'" in find_base_model("Qwen/Qwen3-8B", hub="never", revision="abc").source


def test_the_hub_comes_last_or_first(monkeypatch):
    hub_returns(monkeypatch, TINY)
    assert find_base_model("Qwen/Qwen3-8B").source.startswith("catalogue ")
    assert find_base_model("Qwen/Qwen3-8B", hub="first").source == "hub x"
    assert find_base_model("nobody/nothing-at-all").source == "hub x"


def test_a_failing_hub_falls_back_to_the_catalogue(monkeypatch):
    hub_returns(monkeypatch, None)
    assert find_base_model("Qwen/Qwen3-8B", hub="first").source.startswith("catalogue ")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_by_environment(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match="not searched"):
        find_base_model("nobody/nothing-at-all", hub="first")


def test_nowhere_says_each_place_the_nearest_ids_and_what_to_do(monkeypatch):
    hub_returns(monkeypatch, None, "gated")
    with pytest.raises(ConfigError) as caught:
        find_base_model("meta-llama/Llama-3.1-8Bb")
    message = str(caught.value)
    for part in (
        "looked in local directory",
        "looked in cache",
        "looked in catalogue",
        "looked in hub: gated",
        "meta-llama/Llama-3.1-8B,",
        "config.json",
        "HF_TOKEN",
    ):
        assert part in message
    with pytest.raises(ConfigError, match="remove --offline"):
        find_base_model("meta-llama/Llama-3.1-8Bb", hub="never")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a\0b",
        "a\nb",
        "../..",
        "../../etc/passwd",
        "/etc/passwd",
        "/",
        "a b/c d",
        "x" * 300,
        "x" * 5000,
        "org/mo..del",
        "org/a/b",
        "https://huggingface.co/Qwen/Qwen3-8B",
        "~nobody/x",
        7,
        None,
    ],
)
def test_unsafe_names_are_config_errors(name):
    with pytest.raises(ConfigError):
        find_base_model(name)


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ("{", "no valid JSON"),
        ("[1]", "array"),
        ("{}", "model_type"),
        ('{"model_type": 3}', "model_type"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model_type": "llama", "a": ' + "9" * 5000 + "}", "can't be read"),
    ],
)
def test_broken_files_are_named(tmp_path, content, reported):
    path = write_config(tmp_path / "broken", content)
    with pytest.raises(ConfigError, match=reported) as caught:
        find_base_model(str(path.parent), hub="never")
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_utf8_or_is_too_large(tmp_path):
    path = write_config(tmp_path / "broken")
    path.write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ConfigError, match="UTF-8"):
        find_base_model(str(path), hub="never")
    path.write_bytes(b" " * (17 << 20))
    with pytest.raises(ConfigError, match=r"larger than 16\.0 MiB"):
        find_base_model(str(path), hub="never")


def test_an_adapter_directory_is_recognised(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="lora_model_dir"):
        find_base_model(str(tmp_path / "adapter"), hub="never")


def test_an_unreachable_hub_is_reported_at_once(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    for key in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    look = sources.look_on_hub("org/model", "")
    assert look.config is None
    assert "127.0.0.1 can't be reached" in look.outcome


def test_what_the_hub_raises_becomes_an_outcome(monkeypatch):
    errors = pytest.importorskip("huggingface_hub.errors")

    def refuse(name, revision):
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(sources, "_why_unreachable", lambda: "")
    monkeypatch.setattr(sources, "_download_config", refuse)
    assert sources.look_on_hub("org/model", "").outcome == "HF_HUB_OFFLINE forbids it"


def test_what_the_hub_sends_is_read_and_named(monkeypatch, tmp_path):
    path = write_config(tmp_path / "downloaded")
    monkeypatch.setattr(sources, "_why_unreachable", lambda: "")
    monkeypatch.setattr(sources, "_download_config", lambda name, revision: str(path))
    look = sources.look_on_hub("org/model", "v2")
    assert (look.config, look.source) == (TINY, "hub org/model@v2")
