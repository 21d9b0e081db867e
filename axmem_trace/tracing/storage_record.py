"""The record itself: when each storage is allocated and freed, and the marks of the phases.

One clock counts allocations, frees and marks. `recording_mode.py` finds the storages.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from axmem_trace.ledger import NEVER, Device, Ledger, Mark, Phase, Role
from axmem_trace.ledger.columns import Allocations, make_columns
from axmem_trace.tracing.event_layers import LayerWatch
from axmem_trace.tracing.module_scopes import ModuleScopes
from axmem_trace.tracing.storage_life import StorageLife
from axmem_trace.tracing.tensors import local_part, tensors_in


class StorageRecord:
    """Storages on `traced_device` count as GPU memory, those on other devices as host memory.

    A storage counts as freed when Python's last reference to the storage object ends.
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
        self._purpose = ""
        self._device: Device = "gpu"
        self._in_use: list[StorageLife] = []
        """Freed storages that a stream other than their own may still use."""

    # -- streams, and storages that change in place ---------------------------------------------------------------------

    def use_stream(self, number: int) -> None:
        """From now on, blocks are allocated on this stream."""
        self._stream = number

    def use_on(self, tensor: torch.Tensor, stream: int) -> None:
        """Another stream uses the tensor (`Tensor.record_stream`)."""
        life = self._living.get(local_part(tensor).untyped_storage()._cdata)
        if life is not None and stream != life.stream:
            life.used_on = (life.used_on or set()) | {stream}

    def finish_stream(self, stream: int, moment: int) -> None:
        """The host has waited for all work that was queued on a stream before the tick `moment`."""
        waiting = []
        for life in self._in_use:
            if life.freed_tick <= moment and life.used_on:
                life.used_on.discard(stream)
                if not life.used_on:
                    self._tick += 1
                    life.busy_until = self._tick
                    continue
            waiting.append(life)
        self._in_use = waiting

    def finish_streams(self) -> None:
        """The host has waited for all streams, also for their work on storages that are still alive."""
        for stream in {each for life in self._in_use for each in life.used_on or ()}:
            self.finish_stream(stream, self._tick)
        for life in self._living.values():
            life.used_on = None

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage has grown or shrunk in place (`UntypedStorage.resize_`)."""
        if storage.device.type == self.traced_device or storage._cdata in self._living:
            self._allocate_storage(storage, "resize_")

    @contextmanager
    def as_role(self, role: Role, purpose: str = "") -> Iterator[None]:
        """While open, new allocations have this role. `purpose` is put before the names of the operators."""
        before = self._role, self._purpose
        self._role, self._purpose = role, purpose
        try:
            yield
        finally:
            self._role, self._purpose = before

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """While open, new allocations are host memory: operators run on the CPU."""
        before, self._device = self._device, "cpu"
        try:
            yield
        finally:
            self._device = before

    # -- what the step reports ------------------------------------------------------------------------------------------

    def mark(self, phase: Phase, step: int, micro_batch: int = 0) -> None:
        """`phase` of `step` begins. When backward begins, storages of this forward that are alive are marked as kept."""
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
        """While open, the phase is `phase`; afterwards the former phase continues."""
        before = self._mark
        self.mark(phase, before.step, before.micro_batch)
        yield
        self.mark(before.phase, before.step, before.micro_batch)

    def register(self, tensor: torch.Tensor, *, role: Role, module: str = "", device: Device | None = None) -> None:
        """Sets the role and owner of the tensor's storage for its whole life; an unknown storage is allocated now."""
        tensor = local_part(tensor)
        life = self._living.get(tensor.untyped_storage()._cdata) or self._allocate(tensor, op="")
        if life is not None:
            life.role, life.module = role, module
            if device is not None:
                life.device = device

    def leave_out(self, tensor: torch.Tensor) -> None:
        """The tensor's storage does not count as memory of the run: an operator that returns it has allocated
        nothing."""
        storage = tensor.untyped_storage()
        key, life = storage._cdata, StorageLife(storage.nbytes(), self._tick)
        life.device = "cpu"
        life.watch = weakref.ref(storage, lambda _: self._living.pop(key, None))
        self._living[key] = life

    def workspace(self, nbytes: int | Sequence[int], op: str = "", *, role: Role = "") -> None:
        """Allocates blocks together and frees them before this returns."""
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
        """The current phase."""
        return self._mark.phase

    @property
    def now(self) -> int:
        """The latest tick."""
        return self._tick

    def repeat(self, start: int, end: int, *, step: int) -> dict[int, torch.UntypedStorage]:
        """Repeats, as events of `step`, the events after tick `start` up to `end`, without running them.

        Storages that were allocated and freed in this range are allocated again, for the same number of ticks. Storages
        of gradients are also allocated again, although they are still alive at the end of the range. Other storages
        that are still alive then (a filled cache) exist already and are not repeated. Marks are repeated too.

        Returns:
            For each gradient's storage, a placeholder storage, by the tick at which the original was allocated. When
            the placeholder is freed, the repeated storage counts as freed.
        """
        shift = self._tick - start
        placeholders: dict[int, torch.UntypedStorage] = {}
        for mark in [mark for mark in self._marks if start < mark.tick <= end]:
            self._mark = replace(mark, tick=mark.tick + shift, step=step)
            self._marks.append(self._mark)
        for life in [life for life in self._lives if start < life.allocated_tick <= end]:
            if life.freed_tick > end and life.role != "gradient":
                continue
            copy = life.repeated(shift, step)
            self._lives.append(copy)
            if life.freed_tick > end:
                placeholders[life.allocated_tick] = self._placeholder_of(copy)
            else:
                copy.freed_tick = life.freed_tick + shift
        self._empty_cache_ticks += [tick + shift for tick in self._empty_cache_ticks if start < tick <= end]
        self._tick = end + shift
        if self.layers is not None:
            self.layers.repeat(start, end, shift)
        return placeholders

    def _placeholder_of(self, life: StorageLife) -> torch.UntypedStorage:
        """A placeholder storage: when it is freed, the recorded one counts as freed."""
        with self.paused():
            storage = torch.empty(life.nbytes, dtype=torch.uint8, device=self.traced_device).untyped_storage()
        key = storage._cdata
        life.watch = weakref.ref(storage, lambda _: self._free(key, life))
        self._living[key] = life
        return storage

    def live_bytes(self) -> int:
        """Bytes that are allocated on the GPU now."""
        return sum(life.nbytes for life in self._living.values() if life.device == "gpu")

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's storage counts as host memory."""
        life = self._living.get(local_part(tensor).untyped_storage()._cdata)
        return life is not None and life.device == "cpu"

    def allocation_tick(self, tensor: torch.Tensor) -> int:
        """The tick at which the tensor's storage was allocated; 0 if it is unknown."""
        life = self._living.get(local_part(tensor).untyped_storage()._cdata)
        return life.allocated_tick if life is not None else 0

    def allocate(self, made: Any, op: str) -> None:
        """An operator has returned this: one or several tensors. New storages among them are allocated now."""
        if isinstance(made, torch.Tensor):
            self._allocate(made, op)
        elif isinstance(made, list | tuple):
            for each in made:
                self.allocate(each, op)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, new tensors are not recorded, and no other mode sees them."""
        with _disable_current_modes():
            yield

    def make_ledger(self, since: int = 0) -> Ledger:
        """The ledger so far. Storages that are still alive are never freed in it.

        Args:
            since: storages that were freed up to this tick are left out.
        """
        return Ledger(
            allocations=Allocations(make_columns(life for life in self._lives if life.freed_tick > since)),
            marks=tuple(mark for mark in self._marks if mark.tick > since),
            ticks=self._tick + 1,
            empty_cache_ticks=tuple(tick for tick in self._empty_cache_ticks if tick > since),
        )

    def forget_since(self, tick: int) -> None:
        """Removes from the record the allocations and the marks after a tick. The clock is not set back."""
        self._lives = [life for life in self._lives if life.allocated_tick <= tick]
        self._marks = [mark for mark in self._marks if mark.tick <= tick]
        self._empty_cache_ticks = [each for each in self._empty_cache_ticks if each <= tick]

    # -- allocating and freeing ----------------------------------------------------------------------------------------

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
        life.device = self._device if storage.device.type == self.traced_device else "cpu"
        life.watch = weakref.ref(storage, lambda _: self._free(key, life))
        self._living[key] = life
        return life

    def _start(self, nbytes: int, op: str) -> StorageLife:
        self._tick += 1
        life, mark = StorageLife(nbytes, self._tick), self._mark
        life.phase, life.step, life.micro_batch, life.op = mark.phase, mark.step, mark.micro_batch, op
        life.module = self.scopes.current()
        life.stream, life.role = self._stream, self._role
        if self._purpose:
            life.op = f"{self._purpose}({op})"
        life.recomputed = mark.phase == "backward" and self.scopes.inside
        self._lives.append(life)
        if self.layers is not None:
            life.layer = self.layers.note_allocation(self._tick)
        return life

    def _free(self, key: int, life: StorageLife) -> None:
        if self._living.get(key) is life:
            del self._living[key]
            self._end(life)

    def _end(self, life: StorageLife) -> None:
        self._tick += 1
        life.freed_tick = self._tick
        if life.used_on:
            life.busy_until = NEVER
            self._in_use.append(life)
        if self.layers is not None:
            self.layers.note_free(self._tick)

    def _mark_output(self, output: Any) -> None:
        if self._mark.phase == "backward":
            return
        for tensor in tensors_in(output):
            life = self._living.get(tensor.untyped_storage()._cdata)
            if life is not None:
                life.output = True
