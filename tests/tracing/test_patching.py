"""Replaced attributes are restored, and attributes that are not restored are found."""

from __future__ import annotations

import types
from contextlib import suppress
from typing import Any

import pytest
import torch
from support.left_behind import left_behind
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from axmem_trace.tracing.patching import (
    changed_functions,
    open_replacements,
    replaced,
    replaced_all,
    replaced_forward,
    replaced_items,
)


class Base:
    inherited = 1

    def method(self) -> str:
        return "base"

    @staticmethod
    def static() -> str:
        return "static"


class Derived(Base):
    pass


def test_an_attribute_is_restored_after_an_exception():
    module = types.ModuleType("library")
    module.function = before = lambda: 1  # type: ignore[attr-defined]
    with suppress(ValueError), replaced(module, "function", None):
        assert module.function is None  # type: ignore[attr-defined]
        assert open_replacements() == ("library.function",)
        raise ValueError
    assert module.function is before  # type: ignore[attr-defined]
    assert open_replacements() == ()


def test_an_inherited_attribute_is_inherited_again_after_restoring():
    with replaced(Derived, "method", lambda self: "other"):
        assert Derived().method() == "other"
        assert Base().method() == "base"
    assert "method" not in vars(Derived)
    assert Derived().method() == "base"


def test_a_static_method_stays_static():
    before = vars(Base)["static"]
    with replaced(Base, "static", staticmethod(lambda: "other")):
        assert Base().static() == "other"
    assert vars(Base)["static"] is before
    assert Base().static() == "static"


def test_a_name_that_the_library_does_not_have_is_refused():
    with pytest.raises(AttributeError, match="Base has no attribute 'gone' to replace"), replaced(Base, "gone", 1):
        pass
    with replaced(Base, "gone", 1, new=True):
        assert Base.gone == 1  # type: ignore[attr-defined]
    assert not hasattr(Base, "gone")


def test_several_attributes_and_nested_replacements():
    with replaced_all(Base, {"inherited": 2, "method": None}), replaced(Base, "inherited", 3):
        assert (Base.inherited, Base.method) == (3, None)
    assert (Base.inherited, Base().method()) == (1, "base")


def test_a_forward_is_bound_and_restored():
    layer = torch.nn.Linear(2, 2)
    with replaced_forward(layer, lambda self, x: (self, x)):
        assert layer(1) == (layer, 1)
    assert "forward" not in vars(layer)


def test_items_are_restored_and_new_ones_removed():
    mapping: dict[str, Any] = {"kept": 1, "replaced": 2}
    with replaced_items(mapping, {"replaced": 3, "new": 4}):
        assert mapping == {"kept": 1, "replaced": 3, "new": 4}
        mapping["by the library"] = 5
    assert mapping == {"kept": 1, "replaced": 2, "by the library": 5}


def test_a_function_that_is_not_restored_is_found():
    before = Base.method
    with replaced(Base, "method", None):
        assert "Base.method" in changed_functions()
    assert changed_functions() == ()
    Base.method = None  # type: ignore[assignment, method-assign]
    try:
        assert left_behind() == ["Base.method is not what it was"]
    finally:
        Base.method = before  # type: ignore[method-assign]


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    pass


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        (lambda: replaced(Base, "inherited", 2), "Base.inherited is still replaced"),
        (Dispatch, "on the dispatch modes' stack"),
        (Function, "on the function modes' stack"),
        (torch.no_grad, "gradients are off"),
        (lambda: torch.autocast("cpu"), "autocast is on"),
    ],
)
def test_a_mode_that_stays_active_is_found(opened: Any, said: str):
    assert left_behind() == []
    with opened():
        (found,) = left_behind()
        assert said in found
    assert left_behind() == []


def test_a_global_hook_is_found():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert left_behind() == ["torch.nn.modules.module._global_forward_hooks has 1"]
    finally:
        handle.remove()
