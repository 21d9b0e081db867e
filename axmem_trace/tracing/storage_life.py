"""`StorageLife`: the record's entry for one storage until it is freed."""

from __future__ import annotations

from typing import Any

from axmem_trace.ledger import NEVER, Device, Phase, Role

_REPEATED = (
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
)
"""Attributes that are the same for the same storage of a later step."""


class StorageLife:
    """An `Allocation` that is not complete yet."""

    __slots__ = (
        "allocated_tick",
        "busy_until",
        "device",
        "freed_tick",
        "kept",
        "layer",
        "micro_batch",
        "module",
        "nbytes",
        "op",
        "output",
        "phase",
        "recomputed",
        "role",
        "step",
        "stream",
        "used_on",
        "watch",
    )

    def __init__(self, nbytes: int, allocated: int) -> None:
        self.nbytes, self.allocated_tick, self.freed_tick = nbytes, allocated, NEVER
        self.phase: Phase = "load"
        self.step = self.micro_batch = 0
        self.module = self.op = ""
        self.role: Role = ""
        self.device: Device = "gpu"
        self.recomputed = self.kept = self.output = False
        self.stream = self.busy_until = 0
        self.used_on: set[int] | None = None
        """Other streams that use it."""
        self.watch: Any = None
        self.layer: int | None = None

    def repeated(self, shift: int, step: int) -> StorageLife:
        """The same storage in a later step, still alive."""
        copy = StorageLife(self.nbytes, self.allocated_tick + shift)
        for name in _REPEATED:
            setattr(copy, name, getattr(self, name))
        copy.step = step
        return copy
