"""The recorder: a dispatch mode that writes down the life of every storage that an operator brings forth."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from axmem_trace.ledger import NEVER, Allocation, Device, Ledger, Mark, Phase, Role
from axmem_trace.tracing.kernels.registry import DISPATCH_RULES, WORKSPACE_RULES, KernelContext
from axmem_trace.tracing.known_values import DATA_DEPENDENT, KnownValues, worth_knowing
from axmem_trace.tracing.literal_tensors import literals_known
from axmem_trace.tracing.masked_index import INDEXES, picked_indices
from axmem_trace.tracing.module_scopes import ModuleScopes
from axmem_trace.tracing.result_memo import ResultMemo, can_remember

aten = torch.ops.aten
_MOVES_STORAGE = frozenset({aten.resize_.default, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor})


class _Life:
    """An `Allocation` in the making."""

    __slots__ = ("born", "device", "died", "kept", "micro_batch", "module", "nbytes", "op", "output", "phase",
                 "recomputed", "role", "step", "watch")  # fmt: skip

    def __init__(self, nbytes: int, born: int) -> None:
        self.nbytes, self.born, self.died = nbytes, born, NEVER
        self.phase: Phase = "load"
        self.step = self.micro_batch = 0
        self.module = self.op = ""
        self.role: Role = ""
        self.device: Device = "gpu"
        self.recomputed = self.kept = self.output = False
        self.watch: Any = None

    def repeated(self, shift: int, step: int) -> _Life:
        """The same in a later step, still alive."""
        twin = _Life(self.nbytes, self.born + shift)
        for name in ("phase", "micro_batch", "module", "op", "role", "device", "recomputed", "kept", "output"):
            setattr(twin, name, getattr(self, name))
        twin.step = step
        return twin

    def freeze(self) -> Allocation:
        return Allocation(
            nbytes=self.nbytes,
            born=self.born,
            died=self.died,
            phase=self.phase,
            step=self.step,
            module=self.module,
            op=self.op,
            role=self.role,
            device=self.device,
            recomputed=self.recomputed,
            kept=self.kept,
            output=self.output,
        )


@dataclass(slots=True)
class _Plan:
    """What is to be done for an operator, worked out once."""

    name: str
    fresh: bool
    """It may return a storage that it was not given."""
    mutates: bool
    rule: Callable[..., Any] | None
    workspace: Callable[..., Any] | None
    data_dependent: bool
    leaves_gpu: bool
    """It may copy to the host, as `tolist` does."""
    indexes: bool
    """It may be given boolean masks to index by."""
    can_remember: bool
    decide: Callable[..., None] | None


class Recorder(TorchDispatchMode):
    """Records storages on `traced_device` (`meta`; `cpu` to check meta against a real run) as GPU memory.

    A storage is born when an operator first returns a tensor on it, and dies when Python's last reference to the
    storage object goes; both are ticks of one clock. Tensors on other devices are host memory. What existed before the
    recorder was opened is unknown to it until `register`ed. `with_rules=False` records what meta does by itself.

    Use it as a context manager around the code to record, and call `make_ledger` afterwards.
    """

    def __init__(self, *, traced_device: str = "meta", with_rules: bool = True) -> None:
        super().__init__()
        self.traced_device = traced_device
        self._with_rules = with_rules and traced_device == "meta"
        self._memo = ResultMemo()
        self.values = KnownValues()
        self.scopes = ModuleScopes(self._mark_output)
        self.context = KernelContext(recorder=self)
        self.decisions: dict[Any, Callable[[Recorder, tuple[Any, ...], dict[str, Any], Any], None]] = {}
        """By operator: what settles values that nobody can know (see `kernels/experts/routing.py`), with its result."""
        self._lives: list[_Life] = []
        self._living: dict[int, _Life] = {}
        self._marks: list[Mark] = []
        self._empty_cache_ticks: list[int] = []
        self._tick = 0
        self._mark = Mark(tick=0, phase="load", step=0)
        self._plans: dict[Any, _Plan] = {}

    # -- what the step tells ------------------------------------------------------------------------------------------

    def mark(self, phase: Phase, step: int, micro_batch: int = 0) -> None:
        """From now on, `phase` of `step` goes on. With backward's beginning, what lives of this forward is kept."""
        gc.collect()
        self._tick += 1
        self._mark = Mark(tick=self._tick, phase=phase, step=step, micro_batch=micro_batch)
        self._marks.append(self._mark)
        if phase == "backward":
            for life in self._living.values():
                born_in = (life.phase, life.step, life.micro_batch)
                if not life.role and born_in == ("forward", step, micro_batch):
                    life.kept = True

    def register(self, tensor: torch.Tensor, *, role: Role, module: str = "", device: Device | None = None) -> None:
        """Gives the tensor's storage a role and an owner, now and for its whole life; unseen storages are born now."""
        life = self._living.get(tensor.untyped_storage()._cdata) or self._bear(tensor, op="")
        if life is not None:
            life.role, life.module = role, module
            if device is not None:
                life.device = device

    def workspace(self, nbytes: int | Sequence[int], op: str = "", *, role: Role = "") -> None:
        """Blocks that are alive together for the moment and gone when this returns."""
        with self.blocks([nbytes] if isinstance(nbytes, int) else nbytes, op, role=role):
            pass

    @contextmanager
    def blocks(self, sizes: Sequence[int], op: str = "", *, role: Role = "") -> Iterator[None]:
        """Blocks that no tensor stands for, alive while this is open."""
        lives = [self._start(size, op) for size in sizes if size > 0]
        for life in lives:
            life.role = role
        try:
            yield
        finally:
            for life in reversed(lives):
                self._end(life)

    def hold(self, nbytes: int, op: str, *, role: Role = "workspace") -> None:
        """A block that no tensor stands for and that nobody gives back, such as cuBLAS's workspace."""
        life = self._start(nbytes, op)
        life.role, life.module, life.recomputed = role, "", False

    def empty_cache(self) -> None:
        """The run calls `torch.cuda.empty_cache()` here."""
        self._tick += 1
        self._empty_cache_ticks.append(self._tick)

    @property
    def phase(self) -> Phase:
        """What goes on now."""
        return self._mark.phase

    @property
    def now(self) -> int:
        """The latest tick."""
        return self._tick

    def repeat(self, start: int, end: int, *, step: int) -> dict[int, torch.UntypedStorage]:
        """What happened after tick `start` up to `end` happens once more, in `step`, without being run.

        Storages that were born then and have died since live as long once more, as do those of gradients, which
        outlive the range; what else outlives it (a cache that was filled) is there already. Marks repeat too.

        Returns:
            For each gradient's storage, by the tick at which the original was born, a stand-in that is alive now:
            its death ends the repeated life.
        """
        shift = self._tick - start
        standing: dict[int, torch.UntypedStorage] = {}
        for mark in [mark for mark in self._marks if start < mark.tick <= end]:
            self._mark = replace(mark, tick=mark.tick + shift, step=step)
            self._marks.append(self._mark)
        for life in [life for life in self._lives if start < life.born <= end]:
            if life.died > end and life.role != "gradient":
                continue
            twin = life.repeated(shift, step)
            self._lives.append(twin)
            if life.died > end:
                standing[life.born] = self._stand_for(twin)
            else:
                twin.died = life.died + shift
        self._empty_cache_ticks += [tick + shift for tick in self._empty_cache_ticks if start < tick <= end]
        self._tick = end + shift
        return standing

    def _stand_for(self, life: _Life) -> torch.UntypedStorage:
        """A storage whose death is the life's."""
        with self.paused():
            storage = torch.empty(life.nbytes, dtype=torch.uint8, device=self.traced_device).untyped_storage()
        key = storage._cdata
        life.watch = weakref.ref(storage, lambda _: self._bury(key, life))
        self._living[key] = life
        return storage

    def born_at(self, tensor: torch.Tensor) -> int:
        """The tick at which the tensor's storage was born; 0 where it is unknown."""
        life = self._living.get(tensor.untyped_storage()._cdata)
        return life.born if life is not None else 0

    def place(self, value: torch.Tensor, *, role: Role = "input") -> torch.Tensor:
        """Copies a real tensor to the traced device, remembering a small one's value. Call it inside the recording."""
        with self.paused():
            tensor = torch.empty_like(value, device=self.traced_device, memory_format=torch.contiguous_format)
            if self.traced_device != "meta":
                tensor.copy_(value)
            elif worth_knowing(value):
                self.values.learn(tensor, value)
        self._bear(tensor, op="")
        self.register(tensor, role=role)
        return tensor

    def bear(self, tensors: Iterable[torch.Tensor], op: str) -> None:
        """An operator of ours, whose code no mode watches, has made these."""
        for tensor in tensors:
            self._bear(tensor, op)

    def copy_to_host(self, tensor: torch.Tensor, *, role: Role = "", module: str = "") -> torch.Tensor:
        """A tensor of the same layout that counts as host memory for as long as it lives."""
        with self.paused():
            copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=self.traced_device)
        life = self._bear(copy, op="to_host")
        if life is not None:
            life.device, life.role = "cpu", role
            life.module = module or life.module
        return copy

    def known(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The true value of a tensor on meta, where it follows from the inputs."""
        return self.values.value_of(tensor)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made while open is not recorded, and no other mode sees it either."""
        with _disable_current_modes():
            yield

    @contextmanager
    def watch(self, root: nn.Module) -> Iterator[None]:
        """While open, allocations are attributed to the modules of `root`."""
        with self.scopes.watch(root), literals_known(self.values):
            yield

    def make_ledger(self) -> Ledger:
        """The facts so far. Storages still alive never die in it."""
        return Ledger(
            allocations=tuple([life.freeze() for life in self._lives]),
            marks=tuple(self._marks),
            ticks=self._tick + 1,
            empty_cache_ticks=tuple(self._empty_cache_ticks),
        )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch would wrap every single dispatch in a guard against it."""
        return False

    # -- what operators do --------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # nothing below autograd is for a function mode to see
            return self._record(func, args, kwargs or {})

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = self._make_plan(func)
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
        elif plan.can_remember and not (followed and args):
            result = self._recall_or_run(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if plan.fresh:
            self._bear_all(result, plan.name)
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
        return result

    def _make_plan(self, op: Any) -> _Plan:
        on_meta = self.traced_device == "meta"
        return _Plan(
            name=str(op),
            fresh=op in _MOVES_STORAGE or any(each.alias_info is None for each in op._schema.returns),
            mutates=op._schema.is_mutable,
            rule=DISPATCH_RULES.get(op) if self._with_rules else None,
            workspace=WORKSPACE_RULES.get(op) if self._with_rules else None,
            data_dependent=on_meta and op in DATA_DEPENDENT,
            leaves_gpu=on_meta and op is aten._to_copy.default,
            indexes=on_meta and op in INDEXES,
            can_remember=on_meta and can_remember(op),
            decide=self.decisions.get(op),
        )

    def _recall_or_run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = self._memo.key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        result = self._memo.recall(key, args)
        if result is None:
            result = func(*args, **kwargs)
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
        """Masks whose values are known, as integer indices; a GPU makes these for the moment."""
        picked = picked_indices(self.values, args)
        if picked is None:
            return args
        if self._with_rules:
            self.workspace(picked[1], op)
        return picked[0]

    def _stand_in(self, value: torch.Tensor, op: str) -> torch.Tensor:
        tensor = torch.empty_like(value, device="meta", memory_format=torch.contiguous_format)
        self.values.learn(tensor, value)
        self._bear(tensor, op)
        return tensor

    def _follow(self, plan: _Plan, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Keeps what is known of values in step with what the operator did."""
        if not plan.fresh and not plan.mutates:  # a view: its storage is known, or not, already
            return
        value = self.values.run(func, args, kwargs) if worth_knowing(result) else None
        if value is None:
            if plan.mutates:
                self._forget_mutated(func, args)
            return
        if plan.mutates:
            return
        for tensor, real in zip(_tensors(result), _tensors(value), strict=True):
            if tensor.is_meta and tensor.untyped_storage()._cdata not in self.values._copies:
                self.values.learn(tensor, real)

    def _forget_mutated(self, func: Any, args: tuple[Any, ...]) -> None:
        for argument, schema in zip(args, func._schema.arguments, strict=False):
            if schema.is_write and isinstance(argument, torch.Tensor):
                self.values.forget(argument)

    # -- births and deaths --------------------------------------------------------------------------------------------

    def _bear_all(self, result: Any, op: str) -> None:
        if isinstance(result, torch.Tensor):
            self._bear(result, op)
        elif isinstance(result, list | tuple):
            for each in result:
                self._bear_all(each, op)

    def _bear(self, tensor: torch.Tensor, op: str) -> _Life | None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._living.get(key)
        if known is not None:
            if known.nbytes == nbytes:
                return known
            self._end(known)  # resized: a new block of the allocator
            self._living.pop(key)
        if not nbytes:
            return None
        life = self._start(nbytes, op)
        life.device = "gpu" if tensor.device.type == self.traced_device else "cpu"
        life.watch = weakref.ref(storage, lambda _: self._bury(key, life))
        self._living[key] = life
        return life

    def _start(self, nbytes: int, op: str) -> _Life:
        self._tick += 1
        life, mark = _Life(nbytes, self._tick), self._mark
        life.phase, life.step, life.micro_batch, life.op = mark.phase, mark.step, mark.micro_batch, op
        life.module = self.scopes.current()
        life.recomputed = mark.phase == "backward" and self.scopes.inside
        self._lives.append(life)
        return life

    def _bury(self, key: int, life: _Life) -> None:
        if self._living.get(key) is life:
            del self._living[key]
            self._end(life)

    def _end(self, life: _Life) -> None:
        self._tick += 1
        life.died = self._tick

    def _mark_output(self, output: Any) -> None:
        if self._mark.phase == "backward":
            return
        for tensor in _tensors(output):
            life = self._living.get(tensor.untyped_storage()._cdata)
            if life is not None:
                life.output = True


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
