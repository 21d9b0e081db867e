"""Searches the source for code that uses a layer's number: such code could treat equal layers differently.

Two uses are allowed. The number may be passed to a cache of keys and values, because training has none. It may be an index
into a list of the configuration with one entry per layer. With any other use, layers are not treated as equal.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from axmem_trace.folding.repetition import CannotFold

_TRUSTED = "transformers.models."
"""The package whose source is searched. Base classes elsewhere in transformers or torch do not use layers."""


def refuse_uses_of_numbers(model: nn.Module, path: str, layers: nn.ModuleList, numbers: frozenset[str]) -> None:
    """Raises `CannotFold` if a layer's code uses the layer's number, or other code uses a position in the list of layers."""
    for class_ in {type(module) for layer in layers for module in layer.modules()}:
        for each in _classes_of_models(class_):
            for method in _methods(each):
                _look_for_numbers(each, method, numbers)
    owners = [model]
    for part in path.split(".")[:-1]:
        owners.append(getattr(owners[-1], part))
    own = path.rpartition(".")[2]
    for owner in owners:
        for each in _classes_of_models(type(owner)):
            for method in _methods(each):
                _look_for_positions(each, method, own)


def _classes_of_models(class_: type) -> Iterator[type]:
    """A module's class and its base classes, as far as their source is searched.

    Raises:
        CannotFold: the class is not from transformers.
    """
    for each in class_.__mro__:
        if each.__module__.startswith(_TRUSTED):
            yield each
        elif not each.__module__.startswith(("transformers.", "torch.", "builtins", "abc", "typing", "kernels")):
            raise CannotFold(f"{each.__module__}.{each.__qualname__} is not one of transformers' classes")


@cache
def _classes_in(module: str) -> dict[str, ast.ClassDef]:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        raise CannotFold(f"{module} has no source")
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _methods(class_: type) -> Iterator[ast.FunctionDef]:
    """The methods that run after the model was created."""
    node = _classes_in(class_.__module__).get(class_.__name__)
    if node is None:
        raise CannotFold(f"{class_.__name__} is not in its module's source")
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name not in ("__init__", "_init_weights"):
            yield each


def _look_for_numbers(class_: type, method: ast.FunctionDef, numbers: frozenset[str]) -> None:
    parents = _parents(method)
    for node in ast.walk(method):
        is_number = isinstance(node, ast.Attribute) and node.attr in numbers and _is_self(node.value)
        if is_number and isinstance(node.ctx, ast.Load) and not _may_use(node, parents):  # type: ignore[attr-defined]
            raise _uses(class_, method, node)


def _look_for_positions(class_: type, method: ast.FunctionDef, own: str) -> None:
    """Raises for code that indexes the list, takes its length, or uses the counter of a loop over it."""
    parents = _parents(method)
    for node in ast.walk(method):
        if not (isinstance(node, ast.Attribute) and node.attr == own):
            continue
        parent = parents[node]
        if isinstance(parent, ast.Subscript) and parent.value is node:
            if not isinstance(parent.slice, ast.Slice):
                raise _uses(class_, method, node)
            parent = parents[parent]
        if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "len":
            raise _uses(class_, method, node)
        if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "enumerate":
            loop = parents[parent]
            target = getattr(loop, "target", None)
            if not isinstance(target, ast.Tuple) or not isinstance(target.elts[0], ast.Name):
                raise _uses(class_, method, node)
            position = target.elts[0].id
            for each in ast.walk(loop):
                is_position = isinstance(each, ast.Name) and each.id == position and isinstance(each.ctx, ast.Load)
                if is_position and not _may_use(each, parents):
                    raise _uses(class_, method, each)


def _may_use(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """True if the number is passed to a method of a cache, or is an index into a cache or a list of the configuration."""
    parent = parents[node]
    if isinstance(parent, ast.keyword):
        parent = parents[parent]
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute):
        return _names_cache(parent.func.value)
    if isinstance(parent, ast.Subscript) and parent.slice is node:
        holder = parent.value
        of_config = (
            isinstance(holder, ast.Attribute)
            and isinstance(holder.value, ast.Attribute)
            and (holder.value.attr in ("config", "text_config"))
        )
        return of_config or _names_cache(holder)
    return False


def _names_cache(node: ast.AST) -> bool:
    names = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    names += [each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)]
    return any("cache" in name or "past" in name for name in names)


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def _parents(root: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(root) for child in ast.iter_child_nodes(node)}


def _uses(class_: Any, method: ast.FunctionDef, node: ast.AST) -> CannotFold:
    return CannotFold(f"{class_.__name__}.{method.name} uses the number of a layer (line {getattr(node, 'lineno', 0)})")
