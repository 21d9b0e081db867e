#!/usr/bin/env python3
"""Writes `axmem_trace/report/report.schema.json` from the report's dataclasses: types from their annotations,
descriptions from their docstrings.

Run it after a change of the report. With `--check` it only says whether the file is up to date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from axmem_trace.report import Report
from axmem_trace.report.run_types import NoReport

SCHEMA = Path(__file__).resolve().parent.parent / "axmem_trace" / "report" / "report.schema.json"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
TITLE = "Report of axmem_trace"
BRIEF = "`--format json` folds `modules`; `timeline` and `moments` are empty. `--full` and `Report.to_json()` have all."
COMMON = {
    "phase": "The phase of the run: `load`, `generate`, `score`, `forward`, `backward`, `optimizer` or `eval`.",
    "step": "0 is loading, 1 the first optimizer step.",
    "module": "Dotted name of the module whose code made the allocation; empty: the root, or no module.",
    "op": "The operator that made the allocation.",
    "tick": "The time, counted in allocations and frees since the beginning.",
    "line": "1-based line of the configuration; 0: it is in no line.",
    "weights": "The model's weights, frozen or trained, and its buffers.",
    "adapters": "Weights of LoRA and similar adapters.",
    "reference": "The weights of a second model, which is not trained.",
    "gradients": "Gradients of parameters.",
    "optimizer": "The optimizer's states.",
    "activations": "What forward keeps for backward, and the batch.",
    "workspace": "Temporary tensors, workspaces of libraries, and tensors that checkpointing recomputes.",
    "allocated_bytes": "Live blocks.",
    "reserved_bytes": "The memory that the caching allocator reserves: live and cached blocks.",
    "counted_bytes": "The value of `torch.cuda.max_memory_allocated`.",
    "counted_end_bytes": "The value of `torch.cuda.memory_allocated` at its end.",
    "context_bytes": "Memory of the CUDA context, assumed.",
    "requested_bytes": "The requested size.",
    "peak_bytes": "The maximum of all together at one time.",
    "key": "The key of the configuration.",
}
"""Descriptions of fields that mean the same in each class."""


def make_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what `Report.to_json()` and `--format json` write. All sizes are bytes."""
    definitions: dict[str, Any] = {}
    root = _object(Report, definitions)
    root["description"] += f" {BRIEF}"
    definitions[NoReport.__name__] = _object(NoReport, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def undocumented() -> list[str]:
    """Fields without a description, whose type has no description either, as `Class.field`."""
    return [
        f"{kind.__name__}.{each.name}"
        for kind in _classes(Report)
        for each in fields(kind)
        if not _words_of(kind).get(each.name) and not [*_classes(get_type_hints(kind)[each.name])]
    ]


def _classes(kind: Any, seen: set[Any] | None = None) -> Iterator[Any]:
    seen = set() if seen is None else seen
    if is_dataclass(kind) and kind not in seen:
        seen.add(kind)
        yield kind
        for hint in get_type_hints(kind).values():
            yield from _classes(hint, seen)
    for argument in get_args(kind):
        yield from _classes(argument, seen)


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, words = get_type_hints(kind), _words_of(kind)
    properties, required = {}, []
    for each in fields(kind):
        name = each.metadata.get("json", each.name)
        properties[name] = _type(hints[each.name], definitions)
        if words.get(each.name):
            properties[name] = {"description": words[each.name], **properties[name]}
        if each.default is MISSING and each.default_factory is MISSING:
            required.append(name)
    described = {"description": _first_sentences(kind), "type": "object", "properties": properties}
    return {**described, **({"required": required} if required else {})}


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # a phase contains phases: the name must exist before its content is known
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(argument, definitions) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    return {"type": PLAIN[hint]}


@cache
def _words_of(kind: Any) -> dict[str, str]:
    """The description of each field in the source: the string below the field, else its text under `Attributes:`."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    words = COMMON | _attributes(inspect.getdoc(kind) or "")
    for field_node, after in pairwise(body):
        if (
            isinstance(field_node, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            words[ast.unparse(field_node.target)] = " ".join(str(after.value.value).split())
    return words


def _attributes(doc: str) -> dict[str, str]:
    """The descriptions in lines `a, b: text` under `Attributes:` of a docstring, by name."""
    words: dict[str, str] = {}
    names: list[str] = []
    for line in doc.partition("Attributes:\n")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     ") and ": " in line:
            head, _, text = line.strip().partition(": ")
            names = [name.strip() for name in head.split(",")]
            words |= dict.fromkeys(names, text)
        elif line.strip():
            words |= {name: f"{words[name]} {line.strip()}" for name in names}
    return words


def _first_sentences(kind: Any) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\nAttributes:")[0].split())


def render() -> str:
    """The file's content."""
    return json.dumps(make_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes the file, or with `--check` compares it; returns 1 if the file is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the file is stale")
    if parser.parse_args().check:
        return int(SCHEMA.read_text(encoding="utf-8") != render())
    SCHEMA.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
