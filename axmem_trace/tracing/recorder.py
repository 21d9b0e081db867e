"""The recorder: a dispatch mode that records when each storage that an operator returns is allocated and freed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from axmem_trace.ledger import Role
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.known_values import (
    DATA_DEPENDENT,
    INDEXES,
    KnownValues,
    literals_known,
    picked_indices,
    worth_knowing,
)
from axmem_trace.tracing.originals import call_original, stands_in
from axmem_trace.tracing.result_memo import ResultMemo, can_remember
from axmem_trace.tracing.rules import Rules
from axmem_trace.tracing.storage_record import LifeRecord, tensors_in

aten = torch.ops.aten
_MOVES_STORAGE = frozenset({aten.resize_.default, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor})


Decision = Callable[["Recorder", tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(slots=True)
class _Plan:
    """What the recorder does for an operator, determined once."""

    name: str
    fresh: bool
    """It may return a storage that is not one of its arguments'."""
    mutates: bool
    rule: Callable[..., Any] | None
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


class Recorder(LifeRecord, TorchDispatchMode):
    """Records storages on `traced_device` (`meta`; `cpu` to check meta against a real run) as GPU memory.

    A storage is allocated when an operator first returns a tensor with it. Storages from before the recorder was opened
    are unknown until `register` is called. Without rules it records what the meta kernels do.

    Use it as a context manager around the code to record, and call `make_ledger` afterwards.
    """

    def __init__(
        self, context: KernelContext | None = None, *, rules: Rules | None = None, traced_device: str = "meta"
    ) -> None:
        LifeRecord.__init__(self, traced_device)
        TorchDispatchMode.__init__(self)
        self.rules = Rules()
        """The rules of all kernels that this recorder knows; see `add_rules`."""
        self.context = context or KernelContext()
        self.context.belong_to(self)
        self._memo = ResultMemo()
        self.values = KnownValues()
        self._decisions: dict[Any, Decision] = {}
        self._plans: dict[Any, _Plan] = {}
        self.on_collective: Callable[[], None] | None = None
        """Called with each exchange among ranks."""
        self.add_rules(rules or Rules())

    # -- what it is given ---------------------------------------------------------------------------------------------

    def add_rules(self, rules: Rules) -> None:
        """Adds rules, which apply from now on, also to operators that have run already.

        Raises:
            AssertionError: it has another rule for the same operator or function, or it records a real run.
        """
        assert self.traced_device == "meta" or not rules, (
            "a real run needs no rules: its operators do what the rules describe"
        )
        if not self.rules.has_all(rules):
            self.rules.include(rules)
            self._plans.clear()

    def decide(self, decision: Decision, *ops: Any) -> None:
        """From now on `decision(recorder, args, kwargs, result)` is called after each of these operators: it decides values
        that nobody can know (see `kernels/experts/routing.py`)."""
        self._decisions.update(dict.fromkeys(ops, decision))
        self._plans.clear()

    # -- what the step reports ------------------------------------------------------------------------------------------

    def place(self, value: torch.Tensor, *, role: Role = "input") -> torch.Tensor:
        """Copies a real tensor to the traced device, remembering a small one's value. Call it inside the recording."""
        with self.paused():
            tensor = torch.empty_like(value, device=self.traced_device, memory_format=torch.contiguous_format)
            if self.traced_device != "meta":
                tensor.copy_(value)
            elif worth_knowing(value):
                self.values.learn(tensor, value)
        self.register(tensor, role=role)
        return tensor

    def known(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The true value of a tensor on meta, where it follows from the inputs."""
        return self.values.value_of(tensor)

    @contextmanager
    def watch(self, root: nn.Module, **others: nn.Module) -> Iterator[None]:
        """While open, allocations are attributed to the modules of `root`, and of other models by their names."""
        with self.scopes.watch(root, **others), literals_known(self.values):
            yield

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch would wrap every single dispatch in a guard against it."""
        return False

    # -- what operators do --------------------------------------------------------------------------------------------

    @stands_in
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # its own dispatch leads to the local operators, which come here again
        with torch._C.DisableTorchFunction():  # nothing below autograd is for a function mode to see
            return self._record(func, args, kwargs or {})

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = self._make_plan(func)
        if self.layers is not None:
            self.layers.take_operands(func, args, self._living)
        followed = self.traced_device == "meta" and self.values.may_follow(args)
        if plan.data_dependent and followed:
            result = self._answer(func, args, kwargs)
            if result is not None:
                return result
        if plan.leaves_gpu and followed and torch.device(kwargs.get("device") or "meta").type == "cpu":
            value = self.values.run(func, args, kwargs)
            if value is not None:
                return value
        given = args
        if plan.indexes:
            args = self._index_by_number(args, plan.name)
        if plan.rule is not None:
            result = plan.rule(self.context, func, args, kwargs)
        else:
            result = self._run(plan, func, args, kwargs, followed=followed)
        if plan.fresh:
            self.allocate(result, plan.name)
        if plan.collective and self.on_collective is not None:
            self.on_collective()
        if self.traced_device == "meta":
            if plan.workspace is not None:
                self.workspace(plan.workspace(self.context, args, kwargs, result), plan.name)
            if followed:
                self._follow(plan, func, given, kwargs, result)
            elif plan.mutates:
                self._forget_mutated(func, args)
        if self.values.num_true:
            self.values.settle(result)
        if plan.decide is not None:
            plan.decide(self, args, kwargs, result)
        if self.layers is not None:
            self.layers.drop_operands()
        return result

    def run(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the meta kernel, from the memo of layouts if possible. A rule that does not change the operator
        calls this."""
        return self._run(self._plans[op], op, args, kwargs, followed=self.values.may_follow(args))

    def _make_plan(self, op: Any) -> _Plan:
        on_meta = self.traced_device == "meta"
        return _Plan(
            name=str(op),
            fresh=op in _MOVES_STORAGE or any(each.alias_info is None for each in op._schema.returns),
            mutates=op._schema.is_mutable,
            rule=self.rules.operators.get(op),
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
        key = self._memo.key(func, args, kwargs)
        if key is None:
            return call_original(func, args, kwargs)
        result = self._memo.recall(key, args)
        if result is None:
            result = call_original(func, args, kwargs)
            self._memo.remember(key, args, result)
        return result

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operator that meta cannot run, from known values; None where they are not known."""
        value = self.values.run(func, args, kwargs)
        if value is None or not isinstance(value, torch.Tensor | tuple):
            return value
        if isinstance(value, torch.Tensor):
            return self._stand_in(value, str(func))
        return tuple(self._stand_in(each, str(func)) for each in value)

    def _index_by_number(self, args: tuple[Any, ...], op: str) -> tuple[Any, ...]:
        """Masks whose values are known, as integer indices; a GPU allocates these while the operator runs."""
        picked = picked_indices(self.values, args)
        if picked is None:
            return args
        if self.rules:
            self.workspace(picked[1], op)
        return picked[0]

    def _stand_in(self, value: torch.Tensor, op: str) -> torch.Tensor:
        tensor = torch.empty_like(value, device="meta", memory_format=torch.contiguous_format)
        self.values.learn(tensor, value)
        self._allocate(tensor, op)
        return tensor

    def _follow(self, plan: _Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Updates the known values after the operator."""
        if not plan.fresh and not plan.mutates:  # a view: its storage is known, or not, already
            return
        value = self.values.run(func, args, kwargs) if worth_knowing(result) else None
        if value is None:
            if plan.mutates:
                self._forget_mutated(func, args)
            return
        if plan.mutates:
            return
        for tensor, real in zip(tensors_in(result), tensors_in(value), strict=True):
            if tensor.is_meta and tensor.untyped_storage()._cdata not in self.values._copies:
                self.values.learn(tensor, real)

    def _forget_mutated(self, func: Any, args: tuple[Any, ...]) -> None:
        for argument, schema in zip(args, func._schema.arguments, strict=False):
            if schema.is_write and isinstance(argument, torch.Tensor):
                self.values.forget(argument)
