"""The only way to replace parts of libraries: attributes, forwards and items of dictionaries, restored on closing.

A test can read what is currently replaced, and assert that nothing stays replaced. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

_MISSING: Final = object()
_open: list[str] = []
_originals: dict[tuple[int, str], tuple[Any, Any]] = {}
"""For modules and classes: the target and its original function when it was first replaced in this process."""


def open_replacements() -> tuple[str, ...]:
    """The functions that are currently replaced, the latest last."""
    return tuple(_open)


def changed_functions() -> tuple[str, ...]:
    """Functions that were replaced in this process and are not the original ones now; empty if all are restored."""
    return tuple(
        f"{_name_of(target)}.{name}"
        for (_, name), (target, original) in _originals.items()
        if vars(target).get(name) is not original
    )


@contextmanager
def replaced(target: Any, name: str, value: Any, *, new: bool = False) -> Iterator[None]:
    """While open, the attribute of a module, class or object is `value`.

    Args:
        new: the target may not have the attribute; then the attribute is removed at the end.

    Raises:
        AttributeError: the target has no such attribute, so the library is another release than this was written for.
    """
    own = getattr(target, "__dict__", {}).get(name, _MISSING)  # for a class: the static method, not its function
    inherited = getattr(target, name, _MISSING)
    if own is _MISSING:
        if inherited is _MISSING and not new:
            raise AttributeError(f"{_name_of(target)} has no attribute {name!r} to replace")
    elif isinstance(target, ModuleType | type) and isinstance(own, FunctionType):
        _originals.setdefault((id(target), name), (target, own))
    with _listed(f"{_name_of(target)}.{name}"):
        setattr(target, name, value)
        try:
            yield
        finally:
            if own is not _MISSING:
                setattr(target, name, own)
            else:
                delattr(target, name)
                if inherited is not _MISSING and not hasattr(target, name):  # a proxy: the other object has it
                    setattr(target, name, inherited)


@contextmanager
def replaced_all(target: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """While open, several attributes of one target have these values."""
    if not values:
        yield
        return
    (name, value), *others = values.items()
    with replaced(target, name, value), replaced_all(target, dict(others)):
        yield


@contextmanager
def replaced_forward(module: Any, forward: Any) -> Iterator[None]:
    """While open, `module.forward` is the function `forward`, bound to the module: as if its class had this
    function."""
    with replaced(module, "forward", MethodType(forward, module)):
        yield


@contextmanager
def replaced_items(mapping: MutableMapping[Any, Any], items: Mapping[Any, Any]) -> Iterator[None]:
    """While open, the mapping has these items. At the end, the former items are restored, and new ones are removed."""
    before = {key: mapping.get(key, _MISSING) for key in items}
    with _listed(f"items {', '.join(map(str, items))}"):
        mapping.update(items)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is _MISSING:
                    mapping.pop(key, None)
                else:
                    mapping[key] = value


@contextmanager
def removed_item(find_cache: Callable[[], MutableMapping[Any, Any]], key: Any) -> Iterator[None]:
    """A library's cache lacks the key when this is opened and after it is closed.

    Args:
        find_cache: the cache; the library may have replaced it meanwhile.
    """
    find_cache().pop(key, None)
    try:
        yield
    finally:
        find_cache().pop(key, None)


@contextmanager
def _listed(what: str) -> Iterator[None]:
    _open.append(what)
    try:
        yield
    finally:
        _open.remove(what)


def _name_of(target: Any) -> str:
    return str(getattr(target, "__qualname__", None) or getattr(target, "__name__", None) or type(target).__name__)
