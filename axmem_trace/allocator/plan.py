"""Facts that are computed before a replay begins: size, pool and stream of each allocation, and the events that are not
moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from axmem_trace.allocator.blocks import BlockPool
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.allocator.sizes import SMALL_BYTES
from axmem_trace.ledger import NEVER, Ledger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = tuple[int, int, "int | None"]
"""An entry of the agenda: the tick, a rank for the order within a tick, and the event. The event is the position of an
allocation with which other streams have finished, or None for `empty_cache`."""


@dataclass
class Plan:
    """Lists with one entry for each allocation of the ledger, or for each of its moves."""

    ledger: Ledger
    caching: CachingAllocator

    @cached_property
    def busy_until(self) -> dict[int, int]:
        """By position in the ledger, the tick at which other streams have finished with a block that has been freed."""
        ticks = self.ledger.columns.codes(lambda kind: kind.busy_until)
        return {index: int(ticks[index]) for index in ticks.nonzero()[0].tolist()}

    @cached_property
    def sizes(self) -> list[int]:
        """For each allocation, the size of its block; 0 for an allocation of 0 bytes."""
        import numpy as np

        if not self.caching.rounds_further:
            sizes = self.ledger.columns.block_bytes
        else:
            requested, position = np.unique(self.ledger.columns.nbytes, return_inverse=True)
            rounded = [self.caching.round(each) if each else 0 for each in requested.tolist()]
            sizes = np.array(rounded, dtype=np.int64)[position]
        listed: list[int] = sizes.tolist()
        return listed

    @cached_property
    def ends_brief(self) -> NDArray[np.bool_]:
        """For each move, whether it frees the allocation of the move before it. Between the two there may be only a
        mark."""
        import numpy as np

        ticks, indices, frees = self.ledger.moved
        ends = np.zeros(len(indices), dtype=bool)
        ends[1:] = (indices[1:] == indices[:-1]) & frees[1:] & ~frees[:-1]
        between = ticks.searchsorted([tick for tick, _, _ in self.make_agenda()])
        ends[between[between < len(ends)]] = False
        return ends

    @cached_property
    def brief(self) -> list[bool]:
        """For each allocation, whether the next move frees it."""
        import numpy as np

        brief = np.zeros(len(self.ledger.allocations), dtype=bool)
        brief[self.ledger.moved.indices[self.ends_brief]] = True
        listed: list[bool] = brief.tolist()
        return listed

    @cached_property
    def streams(self) -> list[int]:
        """For each allocation, the number of its stream."""
        streams: list[int] = self.ledger.columns.codes(lambda kind: kind.stream).tolist()
        return streams

    @cached_property
    def pools(self) -> list[BlockPool]:
        """For each allocation, the pool that serves it."""
        small, large = (
            {each: self.caching.pool_of(size, each) for each in set(self.streams)} for size in (1, SMALL_BYTES + 1)
        )
        if len(small) == 1:  # a single stream
            (one,), (other,) = small.values(), large.values()
            return [one if size <= SMALL_BYTES else other for size in self.sizes]
        return [
            (small if size <= SMALL_BYTES else large)[stream]
            for size, stream in zip(self.sizes, self.streams, strict=True)
        ]

    def make_agenda(self) -> list[Item]:
        """All events that are neither moves nor marks, the last one first."""
        agenda: list[Item] = [(tick, -1, None) for tick in self.ledger.empty_cache_ticks]
        agenda += [(tick, -2, index) for index, tick in self.busy_until.items()]
        return sorted((item for item in agenda if item[0] < NEVER), key=lambda item: item[:2], reverse=True)
