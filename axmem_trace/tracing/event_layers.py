"""The layer in which each allocation and each free of a recording happened.

Inside a module's forward, and in its backward, this is the layer of the running module. Elsewhere (the optimizer,
clipping) it is the layer of the operator's arguments. For a list of tensors, it is the layer of each item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from axmem_trace.folding.repetition import Repetition
from axmem_trace.folding.sections import OUTSIDE, EventLayers
from axmem_trace.tracing.module_scopes import ModuleScopes

_current_node: Callable[[], Any] = torch._C._current_autograd_node


class LayerWatch:
    """Stores the layer of every event; the record calls its methods."""

    def __init__(self, repetition: Repetition, scopes: ModuleScopes) -> None:
        self.repetition, self._scopes = repetition, scopes
        self._at_tick: dict[int, int] = {}
        self._given: list[int | None] = []
        self._num_allocated = 0

    def take_operands(self, func: Any, args: tuple[Any, ...], living: Mapping[int, Any]) -> None:
        """An operator begins. If no module is running, its results belong to the layers of its arguments.

        Args:
            living: storages that are alive, by address; each has a `module` and a `layer`.
        """
        self._given, self._num_allocated = [], 0
        if self._scopes.stack or _current_node() is not None:
            return
        for argument in args:
            tensors = argument if isinstance(argument, list | tuple) else (argument,)
            found = [self._layer_of(living, each) for each in tensors if isinstance(each, torch.Tensor)]
            if any(layer is not None for layer in found):
                returns = func._schema.returns
                is_list = bool(returns) and returns[0].type.kind() == "ListType"
                self._given = (
                    found if len(found) == 1 or is_list else []
                )  # stack and cat: the result belongs to no layer
                return

    def drop_operands(self) -> None:
        """The operator has returned."""
        self._given = []

    def note_allocation(self, tick: int) -> int | None:
        """An allocation begins; returns its layer if no module is running."""
        layer = self._note(tick)
        if layer not in (None, OUTSIDE) or not self._given:
            return None
        number, self._num_allocated = self._num_allocated, self._num_allocated + 1
        if len(self._given) == 1:
            return self._given[0]
        return self._given[number] if number < len(self._given) else None

    def note_free(self, tick: int) -> None:
        """An allocation ends."""
        self._note(tick)

    def repeat(self, start: int, end: int, shift: int) -> None:
        """Events after `start` and up to `end` are repeated, `shift` ticks later."""
        again = {tick + shift: layer for tick, layer in self._at_tick.items() if start < tick <= end}
        self._at_tick.update(again)

    def make(self, lives: Iterable[Any]) -> EventLayers:
        """The result; `lives` are all allocations, each with a `module` and a `layer`."""
        return EventLayers(self._at_tick, [self._own_layer(life) for life in lives])

    def _own_layer(self, life: Any) -> int | None:
        layer = self.repetition.layer_of(life.module)
        return life.layer if layer is None else layer

    def _layer_of(self, living: Mapping[int, Any], tensor: torch.Tensor) -> int | None:
        life = living.get(tensor.untyped_storage()._cdata)
        return None if life is None else self._own_layer(life)

    def _note(self, tick: int) -> int | None:
        layer = self._now()
        if layer is not None:
            self._at_tick[tick] = layer
        return layer

    def _now(self) -> int | None:
        stack = self._scopes.stack
        if stack:
            for name in reversed(stack):
                layer = self.repetition.layer_of(name)
                if layer is not None:
                    return layer
            return OUTSIDE
        if _current_node() is None:
            return None
        layer = self.repetition.layer_of(self._scopes.current())
        return OUTSIDE if layer is None else layer
