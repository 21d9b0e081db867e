"""Tables of rules: the only way to describe where a GPU differs from meta. They are passed to the recording mode.

There are three kinds of rule, for three levels of the call stack:

- a *function rule* replaces a Python-level torch function before autograd sees it, so that autograd records what a GPU's
  kernel would have recorded (attention, dropout, autocast's casts);
- a *dispatch rule* replaces an operator below autograd that meta cannot run (`.item()`, data-dependent shapes), or whose
  decomposition allocates what the kernel does not;
- a *workspace rule* returns how many bytes an operator's kernel allocates while it runs; its outputs are not included.

Each rule's docstring names its source: library, file, function, version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from axmem_trace.tracing.context import KernelContext

FunctionRule = Callable[[KernelContext, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""`rule(context, function, args, kwargs)` returns the function's result; it may call `function`."""
DispatchRule = Callable[[KernelContext, Any, tuple[Any, ...], dict[str, Any]], Any]
"""`rule(context, op, args, kwargs)`, below autograd; it may call `op`."""
WorkspaceRule = Callable[[KernelContext, tuple[Any, ...], dict[str, Any], Any], "int | Sequence[int]"]
"""`rule(context, args, kwargs, result)` returns the bytes of the blocks that are alive at the same time while the
kernel runs."""
_Rule = TypeVar("_Rule", bound=Callable[..., Any])


class Rules:
    """A table of rules. Each module of `kernels` that has rules has one; `kernels/install.py` puts them together.

    >>> RULES = Rules()
    >>> @RULES.workspace("an operator")
    ... def scratch(context, args, kwargs, result):
    ...     return 1024
    >>> RULES.workspaces["an operator"] is scratch
    True
    """

    def __init__(self, *tables: Rules) -> None:
        self.functions: dict[Callable[..., Any], FunctionRule] = {}
        self.operators: dict[Any, DispatchRule] = {}
        self.workspaces: dict[Any, WorkspaceRule] = {}
        self.recorded: set[Any] = set()
        """Operators whose dispatch rule runs other operators, which are recorded as if no rule were running."""
        for table in tables:
            self.include(table)

    def function(self, *functions: Callable[..., Any]) -> Callable[[_Rule], _Rule]:
        """A rule for Python-level torch functions (as `__torch_function__` names them)."""
        return lambda rule: _add(self.functions, functions, rule)

    def dispatch(self, *ops: Any, recorded: bool = False) -> Callable[[_Rule], _Rule]:
        """A rule for operator overloads such as `torch.ops.aten.nonzero.default`.

        Args:
            recorded: operators that the rule runs are recorded too, as if no rule were running.
        """
        self.recorded.update(ops if recorded else ())
        return lambda rule: _add(self.operators, ops, rule)

    def workspace(self, *ops: Any) -> Callable[[_Rule], _Rule]:
        """The workspace of operator overloads."""
        return lambda rule: _add(self.workspaces, ops, rule)

    def include(self, other: Rules) -> None:
        """Adds another table's rules; the rules in this table stay.

        Raises:
            AssertionError: the tables have different rules for one key.
        """
        for mine, others in self._pairs(other):
            for key, rule in others.items():
                _add(mine, (key,), rule)
        self.recorded |= other.recorded

    def has_all(self, other: Rules) -> bool:
        """True if this table has every rule of the other table."""
        return all(mine.get(key) is rule for mine, others in self._pairs(other) for key, rule in others.items())

    def __bool__(self) -> bool:
        return bool(self.functions or self.operators or self.workspaces)

    def _pairs(self, other: Rules) -> tuple[tuple[dict[Any, Any], dict[Any, Any]], ...]:
        return (
            (self.functions, other.functions),
            (self.operators, other.operators),
            (self.workspaces, other.workspaces),
        )


def _add(table: dict[Any, Any], keys: Iterable[Any], rule: _Rule) -> _Rule:
    for key in keys:
        known = table.setdefault(key, rule)
        assert known is rule, f"two rules for {key}: {known.__name__} and {rule.__name__}"
    return rule
