"""The record itself: the lives of storages, from birth to death, and the marks of what went on.

One clock counts births, deaths and marks. What brings storages forth is the recorder's business (`recorder.py`).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from axmem_trace.folding.repetition import Repetition
from axmem_trace.folding.sections import EventLayers
from axmem_trace.ledger import NEVER, Device, Ledger, Mark, Phase, Role
from axmem_trace.ledger.columns import Allocations, make_columns
from axmem_trace.tracing.event_layers import LayerWatch
from axmem_trace.tracing.module_scopes import ModuleScopes


class StorageLife:
    """An `Allocation` in the making."""

    __slots__ = ("born", "busy_until", "device", "died", "kept", "layer", "micro_batch", "module", "nbytes", "op", "output",
                 "phase", "recomputed", "role", "step", "stream", "used_on", "watch")  # fmt: skip

    def __init__(self, nbytes: int, born: int) -> None:
        self.nbytes, self.born, self.died = nbytes, born, NEVER
        self.phase: Phase = "load"
        self.step = self.micro_batch = 0
        self.module = self.op = ""
        self.role: Role = ""
        self.device: Device = "gpu"
        self.recomputed = self.kept = self.output = False
        self.stream = self.busy_until = 0
        self.used_on: set[int] | None = None
        """Streams that work on it beside its own."""
        self.watch: Any = None
        self.layer: int | None = None

    def repeated(self, shift: int, step: int) -> StorageLife:
        """The same in a later step, still alive."""
        twin = StorageLife(self.nbytes, self.born + shift)
        for name in (
            "phase",
            "micro_batch",
            "module",
            "op",
            "role",
            "device",
            "recomputed",
            "kept",
            "output",
            "stream",
            "layer",
        ):
            setattr(twin, name, getattr(self, name))
        twin.step = step
        return twin


class LifeRecord:
    """Storages on `traced_device` as GPU memory, on others as host memory.

    A storage dies when Python's last reference to the storage object goes.
    """

    def __init__(self, traced_device: str) -> None:
        self.traced_device = traced_device
        self.scopes = ModuleScopes(self._mark_output)
        self.layers: LayerWatch | None = None
        self._lives: list[StorageLife] = []
        self._living: dict[int, StorageLife] = {}
        self._marks: list[Mark] = []
        self._empty_cache_ticks: list[int] = []
        self._tick = 0
        self._mark = Mark(tick=0, phase="load", step=0)
        self._stream = 0
        self._role: Role = ""
        self._in_use: list[StorageLife] = []
        """Freed, but another stream than their own may still be at work on them."""

    # -- streams, and storages that change in place ---------------------------------------------------------------------

    def use_stream(self, number: int) -> None:
        """From now on, blocks are allocated on this stream."""
        self._stream = number

    def use_on(self, tensor: torch.Tensor, stream: int) -> None:
        """Another stream works with the tensor (`Tensor.record_stream`)."""
        life = self._living.get(local_part(tensor).untyped_storage()._cdata)
        if life is not None and stream != life.stream:
            life.used_on = (life.used_on or set()) | {stream}

    def finish_stream(self, stream: int, moment: int) -> None:
        """The host has waited for what was given to a stream until `moment`."""
        waiting = []
        for life in self._in_use:
            if life.died <= moment and life.used_on:
                life.used_on.discard(stream)
                if not life.used_on:
                    self._tick += 1
                    life.busy_until = self._tick
                    continue
            waiting.append(life)
        self._in_use = waiting

    def finish_streams(self) -> None:
        """The host has waited for everything."""
        for stream in {each for life in self._in_use for each in life.used_on or ()}:
            self.finish_stream(stream, self._tick)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage has grown or shrunk in place (`UntypedStorage.resize_`)."""
        if storage.device.type == self.traced_device or storage._cdata in self._living:
            self._allocate_storage(storage, "resize_")

    @contextmanager
    def as_role(self, role: Role) -> Iterator[None]:
        """While open, what is allocated has this role."""
        before, self._role = self._role, role
        try:
            yield
        finally:
            self._role = before

    # -- what the step reports ------------------------------------------------------------------------------------------

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

    @contextmanager
    def interlude(self, phase: Phase) -> Iterator[None]:
        """While open, `phase` goes on; then what went on before goes on."""
        before = self._mark
        self.mark(phase, before.step, before.micro_batch)
        yield
        self.mark(before.phase, before.step, before.micro_batch)

    def register(self, tensor: torch.Tensor, *, role: Role, module: str = "", device: Device | None = None) -> None:
        """Gives the tensor's storage a role and an owner, now and for its whole life; unseen storages are born now."""
        tensor = local_part(tensor)
        life = self._living.get(tensor.untyped_storage()._cdata) or self._allocate(tensor, op="")
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
        """Blocks without a tensor, allocated while this is open."""
        lives = [self._start(size, op) for size in sizes if size > 0]
        for life in lives:
            life.role = role
        try:
            yield
        finally:
            for life in reversed(lives):
                self._end(life)

    def hold(self, nbytes: int, op: str, *, role: Role = "workspace") -> None:
        """A block without a tensor that is never freed, such as cuBLAS's workspace."""
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
            For each gradient's storage, by the tick at which the original was allocated, a tensor that is alive now:
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
                standing[life.born] = self._placeholder_of(twin)
            else:
                twin.died = life.died + shift
        self._empty_cache_ticks += [tick + shift for tick in self._empty_cache_ticks if start < tick <= end]
        self._tick = end + shift
        if self.layers is not None:
            self.layers.repeat(start, end, shift)
        return standing

    def _placeholder_of(self, life: StorageLife) -> torch.UntypedStorage:
        """A storage whose death is the life's."""
        with self.paused():
            storage = torch.empty(life.nbytes, dtype=torch.uint8, device=self.traced_device).untyped_storage()
        key = storage._cdata
        life.watch = weakref.ref(storage, lambda _: self._free(key, life))
        self._living[key] = life
        return storage

    def born_at(self, tensor: torch.Tensor) -> int:
        """The tick at which the tensor's storage was born; 0 where it is unknown."""
        life = self._living.get(local_part(tensor).untyped_storage()._cdata)
        return life.born if life is not None else 0

    def copy_to_host(self, tensor: torch.Tensor, *, role: Role = "", module: str = "") -> torch.Tensor:
        """A tensor of the same layout that counts as pinned host memory for as long as it lives.

        PyTorch hands pinned memory out in powers of two (2.13, ATen/core/CachingHostAllocator.h, `allocate`).
        """
        with self.paused():
            copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=self.traced_device)
        life = self._allocate(copy, op="to_host")
        if life is not None:
            life.device, life.role = "cpu", role
            life.nbytes = 1 << (life.nbytes - 1).bit_length() if life.nbytes else 0
            life.module = module or life.module
        return copy

    def allocate(self, made: Any, op: str) -> None:
        """An operator has returned this: a tensor, or several. New storages among them are born now."""
        if isinstance(made, torch.Tensor):
            self._allocate(made, op)
        elif isinstance(made, list | tuple):
            for each in made:
                self.allocate(each, op)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made while open is not recorded, and no other mode sees it either."""
        with _disable_current_modes():
            yield

    def make_ledger(self) -> Ledger:
        """The facts so far. Storages still alive never die in it."""
        return Ledger(
            allocations=Allocations(make_columns(self._lives)),
            marks=tuple(self._marks),
            ticks=self._tick + 1,
            empty_cache_ticks=tuple(self._empty_cache_ticks),
        )

    def watch_layers(self, repetition: Repetition) -> None:
        """From now on, the layer of each event is noted; `event_layers` has them."""
        self.layers = LayerWatch(repetition, self.scopes)

    def event_layers(self) -> EventLayers:
        """In which layer each event happened."""
        assert self.layers is not None, "nobody watched the layers"
        return self.layers.make(self._lives)

    # -- births and deaths --------------------------------------------------------------------------------------------

    def _allocate(self, tensor: torch.Tensor, op: str) -> StorageLife | None:
        return self._allocate_storage(tensor.untyped_storage(), op)

    def _allocate_storage(self, storage: torch.UntypedStorage, op: str) -> StorageLife | None:
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
        life.device = "gpu" if storage.device.type == self.traced_device else "cpu"
        life.watch = weakref.ref(storage, lambda _: self._free(key, life))
        self._living[key] = life
        return life

    def _start(self, nbytes: int, op: str) -> StorageLife:
        self._tick += 1
        life, mark = StorageLife(nbytes, self._tick), self._mark
        life.phase, life.step, life.micro_batch, life.op = mark.phase, mark.step, mark.micro_batch, op
        life.module = self.scopes.current()
        life.stream, life.role = self._stream, self._role
        life.recomputed = mark.phase == "backward" and self.scopes.inside
        self._lives.append(life)
        if self.layers is not None:
            life.layer = self.layers.birth(self._tick)
        return life

    def _free(self, key: int, life: StorageLife) -> None:
        if self._living.get(key) is life:
            del self._living[key]
            self._end(life)

    def _end(self, life: StorageLife) -> None:
        self._tick += 1
        life.died = self._tick
        if life.used_on:
            life.busy_until = NEVER
            self._in_use.append(life)
        if self.layers is not None:
            self.layers.death(self._tick)

    def _mark_output(self, output: Any) -> None:
        if self._mark.phase == "backward":
            return
        for tensor in tensors_in(output):
            life = self._living.get(tensor.untyped_storage()._cdata)
            if life is not None:
                life.output = True


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that is divided among ranks (a DTensor); any other tensor as it is."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested mappings, lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
