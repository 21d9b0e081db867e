"""The allocator's counters: bytes allocated and reserved, the limits, and the history."""

from __future__ import annotations

from typing import Literal, NamedTuple

UNLIMITED = 1 << 62

Action = Literal[
    "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "oom"
]


class TraceEntry(NamedTuple):
    """One entry of the allocator's history, as in `torch.cuda.memory._record_memory_history`.

    `size` is the requested size for `alloc`, `free_*` and `oom`, and the size that the driver mapped or unmapped for
    `segment_*`. `address` of `oom` is the free memory of the card, as in PyTorch. `owner` is the index in the ledger of
    the allocation that was allocated or freed; -1 if the program emptied the cache.
    """

    action: Action
    address: int
    size: int
    tick: int
    owner: int


class Accounts:
    """How many bytes are allocated and reserved, and how many may be reserved.

    Args:
        capacity_bytes: the memory that the driver can allocate for this process; 0: no limit.
        memory_fraction: the share of the capacity that the process may reserve (`per_process_memory_fraction`).
        record_history: whether every action is stored in `history`.

    Attributes:
        allocated_bytes, reserved_bytes: the same as `torch.cuda.memory_allocated` and `memory_reserved`.
        busy_bytes: bytes that the program has freed, but another stream still uses. Allocated and busy bytes together
            are `active`.
        high_reserved_bytes: the peak of the reserved bytes.
        num_segments: number of segments: those from `cudaMalloc`, or address ranges of expandable segments.
        num_retries: number of requests for which the cache had to be emptied first.
        tick, owner: the current time, and the current allocation. `history` and `changes` record them.
        changes: (tick, reserved_bytes) after each change of `reserved_bytes`.
    """

    def __init__(self, *, capacity_bytes: int, memory_fraction: float, record_history: bool) -> None:
        self.capacity_bytes = capacity_bytes or UNLIMITED
        limited = capacity_bytes > 0 and memory_fraction < 1.0
        # rounded to the nearest byte, as `scripts/real_allocator.py` shows: 0.35 of 360 MiB is 126 MiB, not a byte less
        self.allowed_bytes = int(memory_fraction * capacity_bytes + 0.5) if limited else UNLIMITED
        self.allocated_bytes = self.reserved_bytes = 0
        self.busy_bytes = 0
        self.high_reserved_bytes = 0
        self.num_segments = self.num_retries = 0
        self.tick, self.owner = 0, -1
        self.changes: list[tuple[int, int]] = []
        self.history: list[TraceEntry] | None = [] if record_history else None

    @property
    def free_bytes(self) -> int:
        """Free bytes of the card, as in `cudaMemGetInfo`."""
        return self.capacity_bytes - self.reserved_bytes

    def change_reserved(self, action: Action, address: int, size: int) -> None:
        """Changes the reserved bytes, because memory was mapped (`segment_alloc`, `segment_map`) or unmapped. Nothing
        else changes them."""
        self.reserved_bytes += size if action in ("segment_alloc", "segment_map") else -size
        if self.reserved_bytes > self.high_reserved_bytes:
            self.high_reserved_bytes = self.reserved_bytes
        self.changes.append((self.tick, self.reserved_bytes))
        self.record(action, address, size)

    def record(self, action: Action, address: int, size: int) -> None:
        """Appends to the history, if one is recorded."""
        if self.history is not None:
            self.history.append(TraceEntry(action, address, size, self.tick, self.owner))
