"""The allocator's counters: bytes allocated and reserved, the limits, and the history."""

from __future__ import annotations

from typing import Literal, NamedTuple

UNLIMITED = 1 << 62

Action = Literal[
    "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "oom"
]


class TraceEntry(NamedTuple):
    """One line of the allocator's history, as `torch.cuda.memory._record_memory_history` keeps it.

    `size` of `alloc`, `free_*` and `oom` is what was requested, of `segment_*` what the driver mapped or unmapped.
    `address` of `oom` is the free memory of the card, as in PyTorch. `owner` is the index in the ledger of the
    allocation that was allocated or freed; -1 if the program emptied the cache.
    """

    action: Action
    address: int
    size: int
    tick: int
    owner: int


class Accounts:
    """How much the allocator holds, and how much it may hold.

    Args:
        capacity_bytes: what the driver can give to this process; 0: no limit.
        memory_fraction: the part of it that the process may reserve (`per_process_memory_fraction`).
        record_history: keep every action in `history`.

    Attributes:
        allocated_bytes, reserved_bytes: as `torch.cuda.memory_allocated` and `memory_reserved` return them.
        busy_bytes: freed by the program, but another stream still works on them; allocated and busy ones are `active`.
        high_reserved_bytes: the most that were ever reserved.
        num_segments: segments held: from `cudaMalloc`, or address ranges of expandable segments.
        num_retries: requests that first had to empty the cache.
        tick, owner: the time, and the allocation that the work is for; `history` and `changes` record both.
        changes: (tick, reserved_bytes) after each change of `reserved_bytes`.
    """

    def __init__(self, *, capacity_bytes: int, memory_fraction: float, record_history: bool) -> None:
        self.capacity_bytes = capacity_bytes or UNLIMITED
        limited = capacity_bytes > 0 and memory_fraction < 1.0
        # to the nearest byte, found by `scripts/real_allocator.py`: 0.35 of 360 MiB is 126 MiB, not a byte less
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
        """Free bytes of the card, as `cudaMemGetInfo` would return them."""
        return self.capacity_bytes - self.reserved_bytes

    def change_reserved(self, action: Action, address: int, size: int) -> None:
        """The only place where reserved bytes change: memory was mapped (`segment_alloc`, `segment_map`) or unmapped."""
        self.reserved_bytes += size if action in ("segment_alloc", "segment_map") else -size
        if self.reserved_bytes > self.high_reserved_bytes:
            self.high_reserved_bytes = self.reserved_bytes
        self.changes.append((self.tick, self.reserved_bytes))
        self.record(action, address, size)

    def record(self, action: Action, address: int, size: int) -> None:
        """Appends to the history, if one is recorded."""
        if self.history is not None:
            self.history.append(TraceEntry(action, address, size, self.tick, self.owner))
