"""The schema of the JSON: it is made from the report's classes, every field is documented, and written reports are
valid."""

from __future__ import annotations

import json

import pytest
from support.hand_made_run import make_hand_made_report
from support.scripts import load_script

from axmem_trace.errors import AxmemError, ConfigError
from axmem_trace.render.json import render_json, render_no_report

SCRIPT = load_script("write_schema")
SCHEMA = json.loads(SCRIPT.SCHEMA.read_text(encoding="utf-8"))


def validate(text: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the `test` extra")
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


def test_the_file_equals_the_output_of_the_script():
    assert SCRIPT.SCHEMA.read_text(encoding="utf-8") == SCRIPT.render(), "run scripts/write_schema.py"


def test_every_field_is_documented():
    assert SCRIPT.undocumented() == []


def test_the_schema_is_valid():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("memory_bytes", [0, 24 << 30, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"brief": True}, {"depth": 1}])
def test_written_reports_match_the_schema(memory_bytes, options):
    validate(render_json(make_hand_made_report(memory_bytes), **options))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("peak", "allocated_bytes"), "many"),
        (("fits",), "yes"),
        (("verdict",), "maybe"),
        (("buckets", "weights"), 1.5),
        (("notes", 0, "kind"), "rumour"),
        (("phases", "step_1", "phases", "forward"), 3),
        (("model", "class"), None),
    ],
)
def test_the_schema_refuses_an_invalid_report(path, value):
    jsonschema = pytest.importorskip("jsonschema")
    contents = json.loads(render_json(make_hand_made_report(24 << 30)))
    inner = contents
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(json.dumps(contents))


def test_a_missing_part_is_refused():
    jsonschema = pytest.importorskip("jsonschema")
    contents = json.loads(render_json(make_hand_made_report()))
    del contents["peak"]
    with pytest.raises(jsonschema.ValidationError, match="peak"):
        validate(json.dumps(contents))


def test_brief_keeps_the_sums_and_folds_the_layers():
    report = make_hand_made_report()
    brief, full = (json.loads(render_json(report, brief=brief)) for brief in (True, False))
    assert brief["timeline"] == []
    assert full["timeline"]
    assert brief["moments"] == []
    assert full["moments"]
    names = [row["name"] for row in brief["modules"]]
    assert "model.layers.{0-1}.proj" in names
    assert len(names) < len(full["modules"])
    for column in ("weight_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes", "num_modules"):
        assert sum(row[column] for row in brief["modules"]) == sum(row[column] for row in full["modules"])
    same = brief.keys() - {"modules", "timeline", "moments"}
    assert {name: brief[name] for name in same} == {name: full[name] for name in same}


def test_reasons_without_a_report_match_the_schema():
    jsonschema = pytest.importorskip("jsonschema")
    second = ConfigError(problem="it is required", key="learning_rate", remedy="add it")
    first = ConfigError(
        problem="not found",
        key="base_model",
        line=3,
        value=7,
        accepted="a name",
        details=("not here",),
        others=(second,),
    )
    contents = json.loads(render_no_report(first))
    schema = {"$ref": "#/$defs/NoReport", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(contents)
    assert contents["refusals"] == [
        {"key": "base_model", "line": 3, "value": "7", "reason": "not found; accepted: a name; not here", "remedy": ""},
        {"key": "learning_rate", "line": 0, "value": "", "reason": "it is required", "remedy": "add it"},
    ]
    (other,) = json.loads(render_no_report(AxmemError("can't be read")))["refusals"]
    assert other["reason"] == "can't be read"
