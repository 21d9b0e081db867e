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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from axmem_trace.notes import Note

if TYPE_CHECKING:
    from axmem_trace.tracing.recorder import Recorder


@dataclass(kw_only=True)
class KernelContext:
    """What a rule may know and do: the target card, the run's choices, and the recorder to report to."""

    recorder: Recorder
    compute_capability: tuple[int, int] = (8, 0)
    attention: str = "sdpa"
    router: str = "balanced"
    options: dict[str, Any] = field(default_factory=dict)
    """Anything else a rule needs from the recipe or the model: `num_experts`, `int8_outliers`, ..."""
    notes: dict[str, Note] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """What `hold_once` has been told."""

    def note(self, note: Note) -> None:
        """Adds a note once per key."""
        self.notes.setdefault(note.key, note)

    def workspace(self, nbytes: int, op: str) -> None:
        """Records a block that lives only for the moment: born and died now."""
        self.recorder.workspace(nbytes, op)

    def hold_once(self, what: str, nbytes: int, op: str) -> bool:
        """Records a block that the process takes the first time it needs it, and keeps. False: it has it already."""
        if what in self.held:
            return False
        self.held.add(what)
        self.recorder.hold(nbytes, op)
        return True


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
