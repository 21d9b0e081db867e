"""Reads facts from the source of an axolotl release: configuration fields, messages of refusals, functions. Nothing is
imported.

A package is a directory (an unpacked wheel, a checkout, the installed package) or a wheel. Only `ast` is used to read
it, so neither torch nor pydantic is needed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT_MODEL = "AxolotlInputConfig"
REQUIRED = "(required)"
COMPUTED = "(computed)"
"""A default that is not a literal: a factory, or a name that is defined elsewhere."""
REFUSING = (
    "utils/schemas/**/*.py",
    "utils/config/*.py",
    "integrations/*/args.py",
    "integrations/base.py",
    "loaders/utils.py",
    "monkeypatch/models/recurrent_support.py",
)
"""Files that refuse configurations."""
PATCHING = (
    "loaders/*.py",
    "core/**/*.py",
    "kernels/*.py",
    "monkeypatch/**/*.py",
    "integrations/**/*.py",
    "model_support/**/*.py",
    "utils/config/*.py",
    "utils/optimizers/*.py",
    "utils/callbacks/__init__.py",
    "utils/quantization.py",
    "utils/collators/*.py",
    "utils/samplers/*.py",
    "utils/lora_*.py",
    "utils/nf4*.py",
    "utils/trainer.py",
    "utils/distributed.py",
    "utils/freeze.py",
    "utils/__init__.py",
)
"""Code that determines what a run allocates."""

Fields = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The facts of one release."""

    version: str
    fields: Fields
    """Dotted name -> `type` and `default` as written, and the integration that defines it (`plugin`)."""
    messages: dict[str, str]
    """Text of a refusal, with `{}` for inserted values -> `file::function`."""
    functions: dict[str, str]
    """`file::Class.function` -> a fingerprint of its code, without docstrings and comments."""


@dataclass
class Model:
    """A pydantic model as written: its base classes by name, and its own fields."""

    bases: list[str]
    fields: Fields = field(default_factory=dict)


def read_source(place: Path | None) -> Source:
    """The axolotl at a path, or the installed one.

    Raises:
        FileNotFoundError: there is no axolotl.
    """
    if place is not None and place.suffix == ".whl":
        with tempfile.TemporaryDirectory() as unpacked:
            zipfile.ZipFile(place).extractall(unpacked)
            return read_source(Path(unpacked))
    package = find_package(place)
    return Source(
        version=_version(package),
        fields=read_fields(package),
        messages=_read_messages(package),
        functions=_read_functions(package),
    )


def find_package(place: Path | None) -> Path:
    """The directory of the package itself.

    Raises:
        FileNotFoundError: there is no axolotl.
    """
    if place is None:
        spec = importlib.util.find_spec("axolotl")
        places = [Path(entry) for entry in (spec.submodule_search_locations or ())] if spec else []
    else:
        places = [place, place / "axolotl", place / "src" / "axolotl"]
    for candidate in places:
        if (candidate / "utils" / "schemas" / "config.py").is_file():
            return candidate
    raise FileNotFoundError(f"no axolotl in {place}" if place else "axolotl is not installed; give a directory")


def read_fields(package: Path) -> Fields:
    """Every field of the configuration, including those of plugins. A plugin's block may be a class of the schema."""
    schema = _read_models(sorted(package.glob("utils/schemas/**/*.py")))
    fields = _flatten(schema, ROOT_MODEL)
    for args in sorted(package.glob("integrations/*/args.py")):
        models = {**schema, **_read_models([args])}
        for name in _entries(args.parent):
            for key, row in _flatten(models, name).items():
                if key not in fields:  # a validator's mixin may repeat a field of the schema
                    fields[key] = {**row, "plugin": args.parent.name}
    return fields


def _version(package: Path) -> str:
    for info in sorted(package.parent.glob("axolotl-*.dist-info")):
        return info.name.removeprefix("axolotl-").removesuffix(".dist-info")
    try:
        return importlib.metadata.version("axolotl")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read_models(paths: list[Path]) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for path in paths:
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef):
                models[node.name] = Model(
                    bases=[ast.unparse(base).split("[")[0] for base in node.bases], fields=_own_fields(node)
                )
    return models


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _own_fields(node: ast.ClassDef) -> Fields:
    fields: Fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_field(item):
            annotation = _unquoted(item.annotation)
            fields[item.target.id] = {
                "type": _type_name(annotation),
                "default": _default(item.value or _field_call(annotation)),
                "model": _nested_model(annotation),
            }
    return fields


def _unquoted(node: ast.expr) -> ast.expr:
    """The annotation without quotes: `"Config | None"`, written as text, is the same annotation."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return ast.parse(node.value, mode="eval").body
    return node


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
    """The class in an annotation such as `TRLConfig | None`. Classes in lists do not count."""
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
        for node in ast.walk(_parse(path)):
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


def _read_messages(package: Path) -> dict[str, str]:
    """The text of each `raise` in the code that refuses configurations."""
    messages: dict[str, str] = {}
    for name, function in _functions_of(package, REFUSING):
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = _text(node.exc.args[0])
                if text.strip("{} "):
                    messages.setdefault(text, name)
    return messages


def _text(node: ast.expr) -> str:
    """A string as written, with `{}` for inserted values."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else "{}"
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "{}"


def _read_functions(package: Path) -> dict[str, str]:
    return {name: _fingerprint(function) for name, function in _functions_of(package, PATCHING)}


def _functions_of(
    package: Path, patterns: tuple[str, ...]
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted({path for pattern in patterns for path in package.glob(pattern)}):
        name = path.relative_to(package).as_posix()
        for qualified, function in _functions_in(_parse(path), ""):
            yield f"{name}::{qualified}", function


def _functions_in(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Only the outermost functions of modules and classes: a function inside another one is part of it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions_in(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _functions_in(child, prefix)


def _fingerprint(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    bare = ast.parse(ast.unparse(function)).body[0]
    for node in ast.walk(bare):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
    return hashlib.sha256(ast.unparse(bare).encode()).hexdigest()[:8]


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
