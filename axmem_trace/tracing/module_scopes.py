"""Which module is running. Forward hooks push and pop names; in backward, autograd's node numbers lead to the
module."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.patching import replaced

_next_sequence_number: Callable[[], int] = torch.autograd._get_sequence_nr
_current_node: Callable[[], Any] = torch._C._current_autograd_node
_ACCUMULATE = (1 << 64) - 1
"""`AccumulateGrad` nodes are not in the order of the forward (torch/csrc/autograd/function.h, `sequence_nr`)."""


class ModuleScopes:
    """The stack of modules whose `forward` is running, and a table of which module made which autograd node.

    Autograd numbers its nodes in the order in which forward makes them. So a node belongs to the module that was on top
    of the stack when autograd used that number. A recomputation inside backward pushes modules again.
    """

    def __init__(self, on_output: Callable[[Any], None]) -> None:
        self.stack: list[str] = []
        self._on_output = on_output
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        """The keys are weak and not `id`s: some models replace a submodule in their first forward (BigBird replaces its
        attention), and Python would use the id again."""
        self._starts: list[int] = [0]
        self._owners: list[str] = [""]

    @contextmanager
    def watch(self, root: nn.Module, **others: nn.Module) -> Iterator[None]:
        """While open, calls of `root` and its submodules are followed, and those of other models under the names given
        here. The hooks are global: nothing is stored in modules."""
        self._names = WeakKeyDictionary({module: name for name, module in root.named_modules()})
        for own_name, other in others.items():
            self._names.update({module: f"{own_name}.{name}".rstrip(".") for name, module in other.named_modules()})
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            with self.follow_recomputation(root):
                yield
        finally:
            before.remove()
            after.remove()

    @contextmanager
    def follow_recomputation(self, root: nn.Module) -> Iterator[None]:
        """While open, a checkpointed layer counts as running whenever its function runs, in backward too.

        transformers 5.24 checkpoints a layer's `forward`, so that its hooks do not run again in backward; releases up
        to 5.20 checkpoint the call, hooks included (`modeling_layers.py`, `GradientCheckpointingLayer`).
        """
        with ExitStack() as stack:
            for module in root.modules():
                checkpoint = vars(module).get("_gradient_checkpointing_func")
                if checkpoint is not None:
                    replacement = self._in_scope(module, checkpoint)
                    stack.enter_context(replaced(module, "_gradient_checkpointing_func", replacement))
            yield

    def _in_scope(self, module: nn.Module, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        @called_by_libraries
        def checkpoint_in_scope(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            @called_by_libraries
            def run(*args: Any, **kwargs: Any) -> Any:
                self._enter(module, args)
                try:
                    return call_original(function, args, kwargs)
                finally:
                    self._leave(module, args, None)

            return call_original(checkpoint, (run, *args), kwargs)

        return checkpoint_in_scope

    @property
    def inside(self) -> bool:
        """Whether some module's forward is running."""
        return bool(self.stack)

    def current(self) -> str:
        """The running module: the top of the stack, or, in backward, the module that made the running node."""
        if self.stack:
            return self.stack[-1]
        node = _current_node()
        if node is None:
            return ""
        number = node._sequence_nr()
        if number == _ACCUMULATE:
            return ""
        return self._owners[bisect_right(self._starts, number) - 1]

    def _enter(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(module)
        if name is not None:
            self.stack.append(name)
            self._mark(name)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._names.get(module)
        if name is None:
            return
        while self.stack and self.stack.pop() != name:  # an exception may have left inner scopes open
            pass
        self._mark(self.stack[-1] if self.stack else "")
        if name and output is not None:
            self._on_output(output)

    def _mark(self, name: str) -> None:
        number = _next_sequence_number()
        if self._starts[-1] == number:
            self._owners[-1] = name
        else:
            self._starts.append(number)
            self._owners.append(name)
