"""Every field of axolotl has its verdict, and the script that watches for new ones sees them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.paths import ROOT
from support.scripts import load_script

from axmem_trace.config.document.coercion import coerce
from axmem_trace.config.document.key_table import AXOLOTL_VERSION, KEYS, PLUGINS

SCHEMA = ROOT.parent / "shared" / "axolotl-0.19.0-schema.json"
FIELDS = json.loads((ROOT / "scripts" / "axolotl_fields.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("refresh_axolotl_schema")


def test_every_field_of_axolotl_and_its_plugins_has_a_verdict():
    assert FIELDS["axolotl_version"] == AXOLOTL_VERSION
    assert set(FIELDS["fields"]) == set(KEYS)
    assert len(KEYS) > 600


def test_every_field_of_the_published_schema_has_a_verdict():
    if not SCHEMA.exists():
        pytest.skip("the schema is not beside this checkout")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))["AxolotlInputConfig"]
    assert len(schema) == 390
    assert set(schema) == {name for name, key in KEYS.items() if "." not in name and not key.plugin}
    literal = {name: row["default"] for name, row in schema.items() if row["default"] != "PydanticUndefined"}
    assert literal == {name: KEYS[name].default for name in literal}


def test_fields_of_a_plugin_carry_its_name():
    listed = {name: row["plugin"] for name, row in FIELDS["fields"].items() if "plugin" in row}
    assert listed == {name: key.plugin for name, key in KEYS.items() if key.plugin}
    assert set(listed.values()) <= set(PLUGINS)


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.verdict == "not_modelled"])
def test_what_is_not_modelled_says_what_it_would_do(name):
    key = KEYS[name]
    assert key.effect
    assert not key.effect.endswith(".")
    assert key.direction in ("more", "less", "either")


def test_each_default_is_a_value_of_its_type():
    for name, key in KEYS.items():
        if key.default is not None:
            assert coerce(key.default, key.type) == key.default, name


# --- the script -------------------------------------------------------------------------------------------------------

CONFIG = """
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
"""
ARGS = """
class HelperArgs(BaseModel):
    ignored: int = 0

class ThingArgs(BaseModel):
    thing_alpha: Annotated[float, Field(default=0.5, description="a")]
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
    }.items():
        path = tmp_path / "axolotl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "axolotl-9.9.0.dist-info").mkdir()
    return tmp_path


def row(type_name: str, default: Any) -> dict[str, Any]:
    return {"type": type_name, "default": default}


def test_fields_are_read_from_source(script, made_up):
    version, fields = script.read_fields(made_up)
    assert version == "9.9.0"
    assert fields == {
        "micro_batch_size": row("int | None", 1),
        "datasets": row("list[Dataset] | None", None),
        "base_model": row("str", "(required)"),
        "inner": row("Inner | None", "(computed)"),
        "inner.beta": row("float | None", None),
        "options": row("dict", {}),
        "thing_alpha": {**row("Annotated[float]", 0.5), "type": "float", "plugin": "thing"},
    }


def test_new_gone_and_changed_fields_are_drift(script):
    reference = {"a": row("int", 1), "b": row("int", 1), "c": row("int", 1), "d": row("int", 1)}
    fields = {"a": row("int", 1), "b": row("int | None", 1), "c": row("int", 2), "e": row("str", "x")}
    keys = {"a": {"default": 1}, "b": {"default": 1}, "c": {"default": 1}, "d": {"default": 1}}
    assert script.find_drift(fields, reference, keys) == [
        "type of b: int -> int | None",
        "default of c: 1 -> 2",
        "default of c in keys.json: 1, axolotl's is 2",
        "gone: d",
        "new: e: str = 'x'",
        "no verdict: e: add it to axmem_trace/config/document/keys.json",
    ]


def test_the_same_fields_are_no_drift(script):
    fields = {"a": row("int", "(required)"), "b": row("dict", {}), "c": row("X", "(computed)")}
    assert script.find_drift(fields, fields, {"a": {}, "b": {}, "c": {"default": 3}}) == []


def test_exit_code_1_on_drift_and_2_without_axolotl(script, made_up, tmp_path, capsys):
    assert script.main([str(made_up)]) == 1
    printed = capsys.readouterr().out
    assert "new: thing_alpha: float = 0.5" in printed
    assert "no verdict: thing_alpha" in printed
    assert "gone: sequence_len" in printed
    assert script.main([str(tmp_path / "nowhere")]) == 2
    assert "no axolotl in" in capsys.readouterr().out


def test_exit_code_0_for_the_fields_that_the_table_was_written_for(script, capsys):
    assert script.main([str(ROOT / "scripts" / "axolotl_fields.json")]) == 0
    assert capsys.readouterr().out.startswith(f"no drift: {len(KEYS)} fields of axolotl 0.19.0")


def test_write_waits_for_verdicts(script, made_up, monkeypatch, tmp_path):
    target = tmp_path / "fields.json"
    monkeypatch.setattr(script, "REFERENCE", target)
    script.main([str(made_up), "--write"])
    assert not target.exists()
    reference = ROOT / "scripts" / "axolotl_fields.json"
    script.main([str(reference), "--write"])
    assert json.loads(target.read_text(encoding="utf-8")) == FIELDS
