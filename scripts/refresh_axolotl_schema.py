"""Compare the table of keys with an axolotl: which fields are new, gone, or changed in type or default.

    python scripts/refresh_axolotl_schema.py [AXOLOTL] [--write]

AXOLOTL is a directory that holds the package (an unpacked wheel, a checkout), or a JSON file of fields; left out,
the installed axolotl is read. Its source is parsed, never imported: neither torch nor pydantic is needed.

`scripts/axolotl_fields.json` holds the fields of the release that `axmem_trace/config/document/keys.json` was written for.
`--write` puts the fields read in its place, when each of them has its verdict in `keys.json`.

Exit code 0: no drift; 1: drift, which is printed; 2: no axolotl there.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "axolotl_fields.json"
KEYS = ROOT / "axmem_trace" / "config" / "document" / "keys.json"
ROOT_MODEL = "AxolotlInputConfig"
REQUIRED = "(required)"
COMPUTED = "(computed)"
"""A default that is no literal: a factory, or a name defined elsewhere."""

Fields = dict[str, dict[str, Any]]


@dataclass
class Model:
    """A pydantic model as written: its base classes by name, and its own fields."""

    bases: list[str]
    fields: Fields = field(default_factory=dict)


def read_fields(place: Path | None) -> tuple[str, Fields]:
    """Version and fields of the axolotl at a place, or of the installed one.

    Raises:
        FileNotFoundError: no axolotl there.
    """
    if place is not None and place.is_file():
        return _of_json(json.loads(place.read_text(encoding="utf-8")))
    package = _find_package(place)
    fields = _flatten(_read_models(sorted(package.glob("utils/schemas/**/*.py"))), ROOT_MODEL)
    for args in sorted(package.glob("integrations/*/args.py")):
        models = _read_models([args])
        for name in _entries(args.parent):
            for key, row in _flatten(models, name).items():
                fields[key] = {**row, "plugin": args.parent.name}
    return _version(package), fields


def find_drift(fields: Fields, reference: Fields, keys: Fields) -> list[str]:
    """One line for each difference, in the order of the fields' names."""
    lines = []
    for name in sorted({*fields, *reference, *keys}):
        here, before, key = fields.get(name), reference.get(name), keys.get(name)
        if here is None:
            lines += [f"gone: {name}"]
            continue
        if before is None:
            lines += [f"new: {name}: {here['type']} = {here['default']!r}"]
        elif before["type"] and here["type"] and before["type"] != here["type"]:
            lines += [f"type of {name}: {before['type']} -> {here['type']}"]
        if before is not None and COMPUTED not in (here["default"], before["default"]) and _differ(here, before):
            lines += [f"default of {name}: {before['default']!r} -> {here['default']!r}"]
        if key is None:
            lines += [f"no verdict: {name}: add it to {KEYS.relative_to(ROOT)}"]
        elif not _says_default(key, here):
            lines += [f"default of {name} in {KEYS.name}: {key.get('default')!r}, axolotl's is {here['default']!r}"]
    return lines


def _differ(here: dict[str, Any], before: dict[str, Any]) -> bool:
    return bool(here["default"] != before["default"])


def _says_default(key: dict[str, Any], here: dict[str, Any]) -> bool:
    """True where the table has axolotl's default, or axolotl's is required or no literal."""
    default = here["default"]
    return default in (REQUIRED, COMPUTED, key.get("default")) or (default in ({}, []) and key.get("default") is None)


def _find_package(place: Path | None) -> Path:
    if place is None:
        spec = importlib.util.find_spec("axolotl")
        places = [Path(entry) for entry in (spec.submodule_search_locations or ())] if spec else []
    else:
        places = [place, place / "axolotl", place / "src" / "axolotl"]
    for candidate in places:
        if (candidate / "utils" / "schemas" / "config.py").is_file():
            return candidate
    raise FileNotFoundError(f"no axolotl in {place}" if place else "axolotl is not installed; give a directory")


def _version(package: Path) -> str:
    for info in sorted(package.parent.glob("axolotl-*.dist-info")):
        return info.name.removeprefix("axolotl-").removesuffix(".dist-info")
    try:
        return importlib.metadata.version("axolotl")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _of_json(content: dict[str, Any]) -> tuple[str, Fields]:
    """This script's own format, or a dump of the model's fields by class name, whose types are written otherwise."""
    if "fields" in content:
        return str(content["axolotl_version"]), content["fields"]
    fields = {name: dict(row) for name, row in content[ROOT_MODEL].items()}
    for row in fields.values():
        row["type"] = ""
        if row["default"] == "PydanticUndefined":
            row["default"] = COMPUTED
    return str(content.get("axolotl_version", "")), fields


def _read_models(paths: list[Path]) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                models[node.name] = Model(
                    bases=[ast.unparse(base).split("[")[0] for base in node.bases], fields=_own_fields(node)
                )
    return models


def _own_fields(node: ast.ClassDef) -> Fields:
    fields: Fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_field(item):
            fields[item.target.id] = {
                "type": _type_name(item.annotation),
                "default": _default(item.value or _field_call(item.annotation)),
                "model": _nested_model(item.annotation),
            }
    return fields


def _is_field(item: ast.AnnAssign) -> bool:
    name = item.target.id if isinstance(item.target, ast.Name) else ""
    return not name.startswith("_") and name != "model_config" and "ClassVar" not in ast.unparse(item.annotation)


def _type_name(node: ast.expr) -> str:
    """The annotation without `Annotated`'s metadata, whose texts change with every release."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Annotated"):
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        return _type_name(inner)
    if isinstance(node, ast.BinOp):
        return f"{_type_name(node.left)} | {_type_name(node.right)}"
    return ast.unparse(node)


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "Field":
        named = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default_factory" in named:
            factory = ast.unparse(named["default_factory"])
            return {"dict": {}, "list": []}.get(factory, COMPUTED)
        value = named.get("default", value.args[0] if value.args else None)
    if value is None or (isinstance(value, ast.Constant) and value.value is ...):
        return REQUIRED
    try:
        return ast.literal_eval(value)
    except ValueError:
        return COMPUTED


def _field_call(annotation: ast.expr) -> ast.expr | None:
    """`Field(...)` among the metadata of an `Annotated`."""
    calls = [node for node in ast.walk(annotation) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field"]
    return calls[0] if calls else None


def _nested_model(node: ast.expr) -> str:
    """The class that an annotation such as `TRLConfig | None` names, outside of any list."""
    names = [part.id for part in _alternatives(node) if isinstance(part, ast.Name) and part.id[0].isupper()]
    return names[0] if names else ""


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return _alternatives(node.left) + _alternatives(node.right)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] in ("Optional", "Union", "Annotated"):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [inner for part in parts for inner in _alternatives(part)]
    return [node]


def _entries(integration: Path) -> list[str]:
    """The model that a plugin names in `get_input_args`: the last part of `axolotl.integrations.kd.KDArgs`."""
    names: dict[str, None] = {}
    for path in sorted(integration.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "get_input_args":
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                paths = [text for text in texts if isinstance(text, str) and text.startswith("axolotl.integrations.")]
                names.update(dict.fromkeys(text.rpartition(".")[2] for text in paths))
    return list(names)


def _flatten(models: dict[str, Model], name: str, prefix: str = "") -> Fields:
    """Fields of a model, of its base classes and of the models nested in it, by dotted name."""
    model = models.get(name)
    if model is None or prefix.count(".") > 3:
        return {}
    fields: Fields = {}
    for base in reversed(model.bases):
        fields.update(_flatten(models, base, prefix))
    for key, row in model.fields.items():
        fields[prefix + key] = {"type": row["type"], "default": row["default"]}
        fields.update(_flatten(models, row["model"], f"{prefix}{key}."))
    return fields


def write_fields(version: str, fields: Fields) -> None:
    """One line per field, so that a change of one is a diff of one line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(fields.items())]
    text = f'{{\n "axolotl_version": {json.dumps(version)},\n "fields": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    REFERENCE.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Prints the drift; the exit code is the module's docstring's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axolotl", type=Path, nargs="?", help="directory that holds the package, or a JSON of fields")
    parser.add_argument("--write", action="store_true", help="make these fields the reference")
    options = parser.parse_args(arguments)
    try:
        version, fields = read_fields(options.axolotl)
    except FileNotFoundError as error:
        print(error)
        return 2
    keys = json.loads(KEYS.read_text(encoding="utf-8"))["keys"]
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))["fields"] if REFERENCE.exists() else {}
    if options.axolotl is not None and options.axolotl.is_file() and not any("." in name for name in fields):
        keys = {name: row for name, row in keys.items() if "." not in name and not row.get("plugin")}
        reference = {name: reference[name] for name in reference if name in keys}
    drift = find_drift(fields, reference, keys)
    print("\n".join(drift) or f"no drift: {len(fields)} fields of axolotl {version or '(version unknown)'}")
    if options.write and not any(line.startswith("no verdict") for line in drift):
        write_fields(version, fields)
    return 1 if drift else 0


if __name__ == "__main__":
    raise SystemExit(main())
