"""The allocator's books: bytes allocated and reserved, the limits, and the history."""

from __future__ import annotations

from typing import Literal, NamedTuple

UNLIMITED = 1 << 62

Action = Literal["alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map",
                 "segment_unmap", "oom"]  # fmt: skip


class TraceEntry(NamedTuple):
    """One line of the allocator's history, as `torch.cuda.memory._record_memory_history` keeps it.

    `size` of `alloc`, `free_*` and `oom` is what was asked for, of `segment_*` what the driver gave or took back.
    `address` of `oom` is the free memory of the card, as in PyTorch. `owner` is the index in the ledger of the
    allocation that was served or freed; -1 where the program emptied the cache.
    """

    action: Action
    address: int
    size: int
    tick: int
    owner: int


class Accounts:
    """What the allocator holds, and what it may hold.

    Args:
        capacity_bytes: what the driver can give to this process; 0: no limit.
        memory_fraction: the part of it that the process may reserve (`per_process_memory_fraction`).
        record_history: keep every action in `history`.

    Attributes:
        allocated_bytes, reserved_bytes: as `torch.cuda.memory_allocated` and `memory_reserved` have it.
        busy_bytes: freed by the program, but another stream still works on them; allocated and busy ones are `active`.
        high_allocated_bytes, high_active_bytes, high_reserved_bytes: the most since somebody last lowered them.
        num_segments: segments held: by `cudaMalloc`, or ranges of addresses of expandable segments.
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
        self.high_allocated_bytes = self.high_active_bytes = self.high_reserved_bytes = 0
        self.num_segments = self.num_retries = 0
        self.tick, self.owner = 0, -1
        self.changes: list[tuple[int, int]] = []
        self.history: list[TraceEntry] | None = [] if record_history else None

    @property
    def free_bytes(self) -> int:
        """What the card has left, as `cudaMemGetInfo` would say."""
        return self.capacity_bytes - self.reserved_bytes

    def reset_highs(self) -> None:
        """As `torch.cuda.reset_peak_memory_stats` does: the peaks become the present levels."""
        self.high_allocated_bytes, self.high_reserved_bytes = self.allocated_bytes, self.reserved_bytes
        self.high_active_bytes = self.allocated_bytes + self.busy_bytes

    def change_allocated(self, delta: int) -> None:
        """The only place where allocated bytes change."""
        self.allocated_bytes += delta
        if self.allocated_bytes > self.high_allocated_bytes:
            self.high_allocated_bytes = self.allocated_bytes
        if self.allocated_bytes + self.busy_bytes > self.high_active_bytes:
            self.high_active_bytes = self.allocated_bytes + self.busy_bytes

    def change_busy(self, delta: int) -> None:
        """Blocks that were freed while another stream worked on them, and those that it is done with."""
        self.busy_bytes += delta
        if self.allocated_bytes + self.busy_bytes > self.high_active_bytes:
            self.high_active_bytes = self.allocated_bytes + self.busy_bytes

    def change_reserved(self, action: Action, address: int, size: int) -> None:
        """The only place where reserved bytes change: the driver gave (`segment_alloc`, `segment_map`) or took."""
        self.reserved_bytes += size if action in ("segment_alloc", "segment_map") else -size
        if self.reserved_bytes > self.high_reserved_bytes:
            self.high_reserved_bytes = self.reserved_bytes
        self.changes.append((self.tick, self.reserved_bytes))
        self.record(action, address, size)

    def record(self, action: Action, address: int, size: int) -> None:
        """Appends to the history, where one is kept."""
        if self.history is not None:
            self.history.append(TraceEntry(action, address, size, self.tick, self.owner))
