"""Every field of axolotl has a verdict, and the script that checks for new fields finds them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.paths import ROOT
from support.scripts import load_script

from axmem_trace.config.axolotl import RELEASES
from axmem_trace.config.document.coercion import coerce
from axmem_trace.config.document.key_table import AXOLOTL_VERSION, KEYS, Key, keys_of, plugins_of

RELEASE_NAMES = [release.version for release in RELEASES]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("refresh_axolotl_schema")


def fields_of(version: str) -> dict[str, dict[str, Any]]:
    """The fields in the release's source."""
    content = json.loads((ROOT / "scripts" / "axolotl" / f"{version}.json").read_text(encoding="utf-8"))
    fields: dict[str, dict[str, Any]] = content["fields"]
    return fields


@pytest.mark.parametrize("version", RELEASE_NAMES)
def test_every_field_of_axolotl_and_its_plugins_has_a_verdict(script, version):
    fields = fields_of(version)
    assert script.field_drift(fields, fields, dict(keys_of(version))) == []
    assert set(fields) == set(keys_of(version))
    assert len(fields) > 600


def test_the_table_matches_the_newest_release():
    assert RELEASES[-1].version == AXOLOTL_VERSION
    assert keys_of(AXOLOTL_VERSION) == KEYS


@pytest.mark.parametrize(("version", "count"), [("0.19.0", 390), ("0.21.0", 413)])
def test_every_field_of_the_published_schema_has_a_verdict(version, count):
    """The list was made by importing axolotl's own classes, independent of this project's reading of the source."""
    schema_file = ROOT.parent / "shared" / f"axolotl-{version}-schema.json"
    if not schema_file.exists():
        pytest.skip("the schema is not beside this checkout")
    schema = json.loads(schema_file.read_text(encoding="utf-8"))["AxolotlInputConfig"]
    keys = keys_of(version)
    assert len(schema) == count
    assert set(schema) == {name for name, key in keys.items() if "." not in name and not key.plugin}
    literal = {name: row["default"] for name, row in schema.items() if row["default"] != "PydanticUndefined"}
    assert literal == {name: keys[name].default for name in literal}


@pytest.mark.parametrize("version", RELEASE_NAMES)
def test_fields_of_a_plugin_have_its_name(version):
    listed = {name: row["plugin"] for name, row in fields_of(version).items() if "plugin" in row}
    assert listed == {name: key.plugin for name, key in keys_of(version).items() if key.plugin}
    assert set(listed.values()) <= set(plugins_of(version))


def test_a_key_of_one_release_is_unknown_in_another():
    assert "eval_on_start" in keys_of("0.21.0")
    assert "eval_on_start" not in keys_of("0.20.0")
    assert "fsdp" in keys_of("0.19.0")
    assert "fsdp" not in keys_of("0.20.0")
    assert [keys_of(each)["fsdp_version"].default for each in RELEASE_NAMES] == [None, 2, 2]
    assert [keys_of(each)["merge_method"].default for each in RELEASE_NAMES] == ["memory_efficient"] * 2 + [None]
    assert [keys_of(each)["nvfp4_merge_aware"].plugin for each in RELEASE_NAMES] == ["kernels", "", ""]


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.verdict == "not_modelled"])
def test_keys_that_are_not_modelled_say_their_effect(name):
    key = KEYS[name]
    assert key.effect
    assert not key.effect.endswith(".")
    assert key.direction in ("more", "less", "either")


@pytest.mark.parametrize("version", RELEASE_NAMES)
def test_each_default_is_a_value_of_its_type(version):
    for name, key in keys_of(version).items():
        if key.default is not None:
            assert coerce(key.default, key.type) == key.default, name


# --- the script -------------------------------------------------------------------------------------------------------

LOADER = '''
class Loader:
    def load(self):
        """Loads."""
        return 1
'''
CONFIG = """
class Shared(BaseModel):
    gamma: int = 2

class Mixin(BaseModel):
    micro_batch_size: int | None = Field(default=1, json_schema_extra={"description": "a"})
    datasets: Annotated[list[Dataset], MinLen(1)] | None = None

class Inner(BaseModel):
    beta: float | None = Field(default=None)

class AxolotlInputConfig(Mixin, BaseModel):
    model_config = {"extra": "ignore"}
    base_model: str
    inner: Inner | None = Field(default_factory=lambda: Inner())
    options: dict = Field(default_factory=dict)
    _private: int = 3

    def check(self):
        raise ValueError(f"{self.name} needs " + "a thing")
"""
ARGS = """
class HelperArgs(BaseModel):
    ignored: int = 0

class ThingArgs(BaseModel):
    thing_alpha: Annotated[float, Field(default=0.5, description="a")]
    block: "Shared | None" = None
"""
PLUGIN = """
class Plugin:
    def get_input_args(self):
        return "axolotl.integrations.thing.ThingArgs"
"""


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    for name, text in {
        "utils/schemas/config.py": CONFIG,
        "integrations/thing/args.py": ARGS,
        "integrations/thing/__init__.py": PLUGIN,
        "loaders/model.py": LOADER,
    }.items():
        path = tmp_path / "axolotl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "axolotl-9.9.0.dist-info").mkdir()
    return tmp_path


def row(type_name: str, default: Any) -> dict[str, Any]:
    return {"type": type_name, "default": default}


def test_fields_are_read_from_source(script, made_up):
    source = script.read_source(made_up)
    assert source.version == "9.9.0"
    assert source.fields == {
        "micro_batch_size": row("int | None", 1),
        "datasets": row("list[Dataset] | None", None),
        "base_model": row("str", "(required)"),
        "inner": row("Inner | None", "(computed)"),
        "inner.beta": row("float | None", None),
        "options": row("dict", {}),
        "thing_alpha": {**row("float", 0.5), "plugin": "thing"},
        "block": {**row("Shared | None", None), "plugin": "thing"},
        "block.gamma": {**row("int", 2), "plugin": "thing"},
    }


def test_messages_and_functions_are_read_from_source(script, made_up):
    source = script.read_source(made_up)
    assert source.messages == {"{} needs a thing": "utils/schemas/config.py::AxolotlInputConfig.check"}
    assert list(source.functions) == [
        "integrations/thing/__init__.py::Plugin.get_input_args",
        "loaders/model.py::Loader.load",
    ]


def test_a_changed_function_is_drift_and_a_changed_docstring_is_not(script, made_up):
    before = script.read_source(made_up)
    model = made_up / "axolotl" / "loaders" / "model.py"
    model.write_text(LOADER.replace("Loads.", "Loads it.").replace("return 1", "return 1  # one"), encoding="utf-8")
    assert script.read_source(made_up).functions == before.functions
    model.write_text(LOADER.replace("return 1", "return 2"), encoding="utf-8")
    after = script.read_source(made_up)
    verdicts = script.Verdicts(messages={}, functions={"9.9.0": {"loaders/model.py": "two is as good"}})
    lines = script.find_drift(after, before, verdicts)
    assert "code changed: loaders/model.py::Loader.load: two is as good" in lines


def test_new_removed_and_changed_fields_are_reported(script):
    reference = {"a": row("int", 1), "b": row("int", 1), "c": row("int", 1), "d": row("int", 1)}
    fields = {"a": row("int", 1), "b": row("int | None", 1), "c": row("int", 2), "e": row("str", "x")}
    keys = {name: Key(name=name, type="int", verdict="none", default=1) for name in "abcd"}
    assert script.field_drift(fields, reference, keys) == [
        "type of b: int -> int | None",
        "default of c: 1 -> 2",
        "default of c in keys.json: 1, axolotl's is 2",
        "gone: d",
        "new: e: str = 'x'",
        "no verdict: e: add it to axmem_trace/config/document/keys.json",
    ]


def test_the_same_fields_are_no_drift(script):
    fields = {"a": row("int", "(required)"), "b": row("dict", {}), "c": row("X", "(computed)")}
    keys = {name: Key(name=name, type="int", verdict="none", default=3 if name == "c" else None) for name in "abc"}
    assert script.field_drift(fields, fields, keys) == []


def test_exit_code_1_on_drift_and_2_without_axolotl(script, made_up, tmp_path, capsys):
    assert script.main([str(made_up)]) == 1
    printed = capsys.readouterr().out
    assert "new: thing_alpha: float = 0.5" in printed
    assert "no verdict: thing_alpha" in printed
    assert "gone: sequence_len" in printed
    assert "refuses: utils/schemas/config.py::AxolotlInputConfig.check: '{} needs a thing': no verdict" in printed
    assert script.main([str(tmp_path / "nowhere")]) == 2
    assert "no axolotl in" in capsys.readouterr().out


def test_a_release_is_compared_with_itself_else_with_the_one_before(script):
    assert script.known_releases() == RELEASE_NAMES
    assert [script.reference_for(each) for each in ("0.20.0", "0.20.3", "9.9.0", "0.1", "")] == [
        "0.20.0",
        "0.20.0",
        "0.21.0",
        "0.19.0",
        "0.21.0",
    ]


@pytest.mark.parametrize(("before", "after"), pairwise(RELEASE_NAMES))
def test_each_difference_between_two_releases_has_its_verdict(script, before, after):
    drift = script.find_drift(script.read_reference(after), script.read_reference(before), script.Verdicts.read())
    assert len(drift) > 100
    assert [line for line in drift if "no verdict" in line] == []


def test_write_makes_a_reference(script, made_up, monkeypatch, tmp_path, capsys):
    (tmp_path / "verdicts.json").write_text('{"messages": {}, "functions": {}}', encoding="utf-8")
    source = script.only_cited(script.read_source(made_up))
    monkeypatch.setattr(script, "REFERENCES", tmp_path)
    script.write_reference(source)
    assert script.read_reference("9.9.0") == source
    assert script.main([str(made_up)]) == 1, "fields that `keys.json` has not"
    assert "new: " not in capsys.readouterr().out
