"""ZeRO-3: hooks before and after each module's forward and backward.

Source: deepspeed 0.19.8 `runtime/zero/parameter_offload.py` `DeepSpeedZeRoOffload`, `ZeROOrderedDict`;
`runtime/zero/utils.py` `apply_to_tensors_only`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from axmem_trace.parallel.zero.coordinator import Coordinator
from axmem_trace.parallel.zero.parts import NOT_AVAILABLE, Parts


class ModuleHooks:
    """Hooks on every module of a model.

    Args:
        is_leaf: returns whether a module is fetched together with all modules inside it. The inner modules get no
            hooks.
        externals: by module, the parameters that it uses but does not own. They are found in forward.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        coordinator: Coordinator,
        *,
        is_leaf: Callable[[nn.Module], bool],
        externals: dict[int, dict[int, nn.Parameter]],
    ) -> None:
        self._parts, self._coordinator, self._is_leaf, self._externals = parts, coordinator, is_leaf, externals
        self._running: list[nn.Module] = [model]
        self._in_forward = False
        for module in model.modules():
            module._parameters = _Watched(self, module._parameters)
        model.register_forward_pre_hook(lambda module, args: self._set_forward(True))
        model.register_forward_hook(lambda module, args, output: self._set_forward(False))
        model.register_forward_pre_hook(lambda module, args: coordinator.start_forward())
        self._register(model)

    def _set_forward(self, value: bool) -> None:
        self._in_forward = value

    def used(self, parameter: nn.Parameter | None) -> nn.Parameter | None:
        """Called when a module's parameter is read. If it is not whole, it is gathered for the running module."""
        part = self._parts.of(parameter) if parameter is not None else None
        if part is not None and part.status == NOT_AVAILABLE and self._in_forward:
            assert parameter is not None
            self._externals.setdefault(id(self._running[-1]), {})[id(parameter)] = parameter
            with torch.no_grad():
                self._parts.gather_now([part])
        return parameter

    def _register(self, module: nn.Module) -> None:
        if not self._is_leaf(module):
            for child in module.children():
                self._register(child)
        module.register_forward_pre_hook(self._before_forward)
        module.register_forward_hook(self._after_forward)
        before, after = _backward_functions(module, self._coordinator)
        module.register_forward_hook(lambda module, args, output: _map(before, output))
        module.register_forward_pre_hook(lambda module, args: after(args))

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)
        self._coordinator.fetch(module, forward=True)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        self._coordinator.release(module, forward=True)


class _Watched(OrderedDict[str, Any]):
    """The dictionary of a module's parameters. It reports each access to one."""

    def __init__(self, hooks: ModuleHooks, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._hooks = hooks

    def __getitem__(self, key: str) -> Any:
        return self._hooks.used(super().__getitem__(key))

    def __reduce__(self) -> Any:
        return (dict, (dict(self),))


def _map(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Applies a function to the tensors in tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        mapped = [_map(function, each) for each in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    if isinstance(value, dict):
        for key in list(value.keys()):
            value[key] = _map(function, value[key])
    return value


def _backward_functions(
    module: nn.Module, coordinator: Coordinator
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], Any]]:
    """Two functions: one for a module's outputs, whose backward runs before the module's backward, and one for its
    inputs, whose backward runs after it."""
    counts = {"started": 0, "left": 0}

    class Before(torch.autograd.Function):
        @staticmethod
        def forward(outputs: torch.Tensor) -> torch.Tensor:
            return outputs.detach()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            counts["started"] += 1

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if counts["started"] > 0:
                coordinator.fetch(module, forward=False)
                counts["started"] -= 1
            return grads

    class After(torch.autograd.Function):
        @staticmethod
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            return inputs.detach()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            if inputs[0].requires_grad:
                counts["left"] += 1

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            counts["left"] -= 1
            if counts["left"] == 0:
                coordinator.release(module, forward=False)
            return grads

    def on_inputs(args: Any) -> Any:
        counts["left"] = 0
        return _map(lambda each: After.apply(each), args)

    return (lambda each: Before.apply(each)), on_inputs
