"""The one way to say that a GPU does something else than meta.

Three kinds of rule, by where in the stack the difference lies:

- a *function rule* replaces a Python-level torch function before autograd sees it, so that autograd records what a GPU's
  kernel would have recorded (attention, dropout, autocast's casts);
- a *dispatch rule* answers an operator below autograd, where meta cannot (`.item()`, data-dependent shapes) or where its
  decomposition allocates what the kernel does not;
- a *workspace rule* tells how many bytes an operator's kernel takes while it runs, beside its outputs.

Each rule's docstring names its source: library, file, function, version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from axmem_trace.tracing.context import KernelContext

FunctionRule = Callable[[KernelContext, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""`rule(context, function, args, kwargs)` returns what the function would have returned; it may call `function`."""
DispatchRule = Callable[[KernelContext, Any, tuple[Any, ...], dict[str, Any]], Any]
"""`rule(context, op, args, kwargs)`, below autograd; it may call `op`."""
WorkspaceRule = Callable[[KernelContext, tuple[Any, ...], dict[str, Any], Any], "int | Sequence[int]"]
"""`rule(context, args, kwargs, result)` returns the bytes alive together while the kernel runs."""

FUNCTION_RULES: dict[Callable[..., Any], FunctionRule] = {}
DISPATCH_RULES: dict[Any, DispatchRule] = {}
WORKSPACE_RULES: dict[Any, WorkspaceRule] = {}


def function_rule(*functions: Callable[..., Any]) -> Callable[[FunctionRule], FunctionRule]:
    """Registers a rule for Python-level torch functions (as `__torch_function__` names them)."""

    def register(rule: FunctionRule) -> FunctionRule:
        return _register(FUNCTION_RULES, functions, rule)

    return register


def dispatch_rule(*ops: Any) -> Callable[[DispatchRule], DispatchRule]:
    """Registers a rule for operator overloads such as `torch.ops.aten.nonzero.default`."""

    def register(rule: DispatchRule) -> DispatchRule:
        return _register(DISPATCH_RULES, ops, rule)

    return register


def workspace_rule(*ops: Any) -> Callable[[WorkspaceRule], WorkspaceRule]:
    """Registers the workspace of operator overloads."""

    def register(rule: WorkspaceRule) -> WorkspaceRule:
        return _register(WORKSPACE_RULES, ops, rule)

    return register


def _register(table: dict[Any, Any], keys: Iterable[Any], rule: Any) -> Any:
    for key in keys:
        assert key not in table, f"two rules for {key}: {table[key].__name__} and {rule.__name__}"
        table[key] = rule
    return rule
