"""`RecordingMode`: a dispatch mode that applies the rules for a GPU's kernels to operators, and records the
operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.known_values import DATA_DEPENDENT, INDEXES, picked_indices, worth_knowing
from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.result_memo import can_remember
from axmem_trace.tracing.rules import Rules
from axmem_trace.tracing.tensors import local_part, tensors_in

aten = torch.ops.aten
_MOVES_STORAGE = frozenset({aten.resize_.default, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor})

WRAPPERS = (DTensor, AsyncCollectiveTensor)
"""Tensors without memory of their own: each of them wraps another tensor."""

Decision = Callable[[Recorder, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(slots=True)
class _Plan:
    """What the mode does for an operator. It is determined once for each operator."""

    name: str
    fresh: bool
    """It may return a storage that is not one of its arguments'."""
    mutates: bool
    rule: Callable[..., Any] | None
    rule_is_recorded: bool
    """The operators that its rule runs are recorded too."""
    workspace: Callable[..., Any] | None
    data_dependent: bool
    leaves_gpu: bool
    """It may copy to the host, as `tolist` does."""
    indexes: bool
    """Its arguments may contain boolean masks as indices."""
    can_remember: bool
    decide: Decision | None
    collective: bool
    """It exchanges with other ranks."""


class RecordingMode(TorchDispatchMode):
    """While open, it reports to `context.recorder` each storage that an operator returns, and each block of the
    operator's kernel.

    A storage counts as allocated when an operator first returns a tensor with it. Without rules, the allocations of the
    meta kernels themselves are recorded.
    """

    def __init__(self, context: KernelContext | None = None, rules: Rules | None = None) -> None:
        super().__init__()
        self.context = context or KernelContext()
        self.recorder = self.context.recorder
        self.rules = Rules()
        """The rules of all kernels that this mode knows; see `add_rules`."""
        self._on_meta = self.recorder.traced_device == "meta"
        self._decisions: dict[Any, Decision] = {}
        self._plans: dict[Any, _Plan] = {}
        self.add_rules(rules or Rules())

    # -- what it is given ---------------------------------------------------------------------------------------------

    def add_rules(self, rules: Rules) -> None:
        """Adds rules. They apply from now on, also to operators that have already run.

        Raises:
            AssertionError: the mode has another rule for the same operator or function, or it records a real run.
        """
        assert self._on_meta or not rules, "a real run needs no rules: its operators do what the rules describe"
        if not self.rules.has_all(rules):
            self.rules.include(rules)
            self._plans.clear()

    @contextmanager
    def additions_undone(self) -> Iterator[None]:
        """Rules and decisions that are added while this is open are removed at the end."""
        rules, decisions = Rules(self.rules), dict(self._decisions)
        try:
            yield
        finally:
            self.rules, self._decisions = rules, decisions
            self._plans.clear()

    def decide(self, decision: Decision, *ops: Any) -> None:
        """From now on `decision(recorder, args, kwargs, result)` is called after each of these operators. It sets
        values that can't be known (see `kernels/experts/routing.py`)."""
        self._decisions.update(dict.fromkeys(ops, decision))
        self._plans.clear()

    # -- what operators do --------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here. Otherwise torch would wrap every dispatch in a guard against compilation."""
        return False

    @called_by_libraries
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, WRAPPERS) for each in types):
            return NotImplemented  # its own dispatch calls the local operators, which come here again
        with torch._C.DisableTorchFunction():  # a function mode must not see calls below autograd
            return self._record(func, args, kwargs or {})

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = self._make_plan(func)
        recorder, values = self.recorder, self.recorder.values
        recorder.begin_operator(func, args)
        followed = self._on_meta and values.may_follow(args)
        if plan.data_dependent and followed:
            result = self._answer(func, args, kwargs)
            if result is not None:
                return result
        if plan.leaves_gpu and followed and torch.device(kwargs.get("device") or "meta").type == "cpu":
            value = values.run(func, args, kwargs)
            if value is not None:
                return value
        given = args
        if plan.indexes:
            args = self._index_by_number(args, plan.name)
        if plan.rule is None:
            result = self._run(plan, func, args, kwargs, followed=followed)
        elif plan.rule_is_recorded:
            with self:
                result = plan.rule(self.context, func, args, kwargs)
        else:
            result = plan.rule(self.context, func, args, kwargs)
        if plan.fresh:
            recorder.allocate(local_part(result) if plan.collective else result, plan.name)
        if plan.collective and recorder.on_collective is not None:
            recorder.on_collective()
        if self._on_meta:
            if plan.workspace is not None:
                recorder.workspace(plan.workspace(self.context, args, kwargs, result), plan.name)
            if followed:
                self._follow(plan, func, given, kwargs, result)
            elif plan.mutates:
                self._forget_mutated(func, args)
        if values.num_true:
            values.settle(result)
        if plan.decide is not None:
            plan.decide(recorder, args, kwargs, result)
        recorder.end_operator()
        return result

    def _make_plan(self, op: Any) -> _Plan:
        on_meta = self._on_meta
        return _Plan(
            name=str(op),
            fresh=op in _MOVES_STORAGE or any(each.alias_info is None for each in op._schema.returns),
            mutates=op._schema.is_mutable,
            rule=self.rules.operators.get(op),
            rule_is_recorded=op in self.rules.recorded,
            workspace=self.rules.workspaces.get(op),
            data_dependent=on_meta and op in DATA_DEPENDENT,
            leaves_gpu=on_meta and op is aten._to_copy.default,
            indexes=on_meta and op in INDEXES,
            can_remember=on_meta and can_remember(op),
            decide=self._decisions.get(op),
            collective=op.namespace in ("c10d", "_c10d_functional"),
        )

    def _run(self, plan: _Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, followed: bool) -> Any:
        if not plan.can_remember or (followed and args):
            return call_original(func, args, kwargs)
        return self.context.memo.run(func, args, kwargs)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result, from known values, of an operator that meta cannot run; None if they are not known."""
        value = self.recorder.values.run(func, args, kwargs)
        if value is None or not isinstance(value, torch.Tensor | tuple):
            return value
        if isinstance(value, torch.Tensor):
            return self._placeholder(value, str(func))
        return tuple(self._placeholder(each, str(func)) for each in value)

    def _index_by_number(self, args: tuple[Any, ...], op: str) -> tuple[Any, ...]:
        """Replaces masks whose values are known by integer indices. A GPU allocates these while the operator runs."""
        picked = picked_indices(self.recorder.values, args)
        if picked is None:
            return args
        if self.rules:
            self.recorder.workspace(picked[1], op)
        return picked[0]

    def _placeholder(self, value: torch.Tensor, op: str) -> torch.Tensor:
        tensor = torch.empty_like(value, device="meta", memory_format=torch.contiguous_format)
        self.recorder.values.learn(tensor, value)
        self.recorder.allocate(tensor, op)
        return tensor

    def _follow(self, plan: _Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Updates the known values after the operator."""
        if not plan.fresh and not plan.mutates:  # a view: nothing changes for its storage
            return
        value = self.recorder.values.run(func, args, kwargs) if worth_knowing(result) else None
        if value is None:
            if plan.mutates:
                self._forget_mutated(func, args)
            return
        if plan.mutates:
            return
        for tensor, real in zip(tensors_in(result), tensors_in(value), strict=True):
            if tensor.is_meta and not self.recorder.values.knows(tensor):
                self.recorder.values.learn(tensor, real)

    def _forget_mutated(self, func: Any, args: tuple[Any, ...]) -> None:
        for argument, schema in zip(args, func._schema.arguments, strict=False):
            if schema.is_write and isinstance(argument, torch.Tensor):
                self.recorder.values.forget(argument)
