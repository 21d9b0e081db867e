"""`Recorder`: the record of storages, and their known values. `RecordingMode` reports to it what operators do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from axmem_trace.folding.repetition import Repetition
from axmem_trace.folding.sections import EventLayers
from axmem_trace.ledger import Role
from axmem_trace.notes import Notes
from axmem_trace.tracing.event_layers import LayerWatch
from axmem_trace.tracing.known_values import KnownValues, literals_known, worth_knowing
from axmem_trace.tracing.storage_record import StorageRecord


class Recorder(StorageRecord):
    """Everything that one recording stores: the storages, the values of small tensors, and the notes. Storages on
    `traced_device` count as GPU memory; that is `meta`, or `cpu` to check meta against a real run.

    A storage that was made before the recording is unknown until `register` is called with it.
    """

    def __init__(self, traced_device: str = "meta") -> None:
        super().__init__(traced_device)
        self.values = KnownValues()
        self.notes = Notes()
        """How the figures were calculated."""
        self.on_collective: Callable[[], None] | None = None
        """Called with each exchange among ranks."""

    def place(self, value: torch.Tensor, *, role: Role = "input") -> torch.Tensor:
        """Copies a real tensor to the traced device, and stores its value if it is small. Call it inside the
        recording."""
        with self.paused():
            tensor = torch.empty_like(value, device=self.traced_device, memory_format=torch.contiguous_format)
            if self.traced_device != "meta":
                tensor.copy_(value)
            elif worth_knowing(value):
                self.values.learn(tensor, value)
        self.register(tensor, role=role)
        return tensor

    def known(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The true value of a tensor on meta, if it follows from the inputs."""
        return self.values.value_of(tensor)

    def copy_to_host(self, tensor: torch.Tensor, *, role: Role = "", module: str = "") -> torch.Tensor:
        """A tensor of the same layout, which counts as pinned host memory while it is alive.

        PyTorch allocates pinned memory in powers of two (2.13, ATen/core/CachingHostAllocator.h, `allocate`).
        """
        with self.paused():
            copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=self.traced_device)
        life = self._allocate(copy, op="to_host")
        if life is not None:
            life.device, life.role = "cpu", role
            life.nbytes = 1 << (life.nbytes - 1).bit_length() if life.nbytes else 0
            life.module = module or life.module
        return copy

    @contextmanager
    def watch(self, root: nn.Module, **others: nn.Module) -> Iterator[None]:
        """While open, allocations are attributed to the modules of `root`, and to those of other models under the names
        given here."""
        with self.scopes.watch(root, **others), literals_known(self.values):
            yield

    @contextmanager
    def in_module(self, name: str) -> Iterator[None]:
        """While open, allocations belong to this module, as in its forward: for code that works module by module."""
        self.scopes.stack.append(name)
        try:
            yield
        finally:
            self.scopes.stack.pop()

    # -- layers -----------------------------------------------------------------------------------------------------------

    def watch_layers(self, repetition: Repetition) -> None:
        """From now on, the layer of each event is stored; `event_layers` returns them."""
        self.layers = LayerWatch(repetition, self.scopes)

    def event_layers(self) -> EventLayers:
        """The layer in which each event happened."""
        assert self.layers is not None, "`watch_layers` was not called"
        return self.layers.make(self._lives)

    def begin_operator(self, func: Any, args: tuple[Any, ...]) -> None:
        """An operator is called with these arguments."""
        if self.layers is not None:
            self.layers.take_operands(func, args, self._living)

    def end_operator(self) -> None:
        """All that the operator allocates has been reported."""
        if self.layers is not None:
            self.layers.drop_operands()
