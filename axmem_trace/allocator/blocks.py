"""Blocks, the pools of free ones, and the segments that can grow.

Sources: `Block`, `BlockPool`, `ExpandableSegment`, `BlockComparatorSize` in c10/cuda/CUDACachingAllocator.cpp
(torch 2.13). PyTorch orders a pool's free blocks by stream first and never uses a block for another stream; here each
stream has its own pools.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

FIRST_ADDRESS = 0x3000_0000_0000
"""Address of the first segment: 47 bits, as CUDA's on Linux."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpandableSegment:
    """A range of reserved addresses that physical pages are mapped into, always whole pages.

    Attributes:
        address: where the range begins.
        page_bytes: 2 MiB in the small pool, `large_segment_bytes` (20 MiB) in the large one.
    """

    address: int
    page_bytes: int

    def next_page(self, address: int) -> int:
        """The first page boundary at or after an address (`segmentRight`)."""
        return self.address - (self.address - address) // self.page_bytes * self.page_bytes

    def last_page(self, address: int) -> int:
        """The last page boundary at or before an address (`segmentLeft`)."""
        return self.address + (address - self.address) // self.page_bytes * self.page_bytes


class Block:
    """A range of addresses with one use: allocated, free, or (in an expandable segment) not mapped.

    `prev` and `next` are its neighbours in the same segment. `size` is what `torch.cuda.memory_allocated` counts while
    the block is allocated; `requested_bytes` is what was requested, `owner` the allocation that it holds. `idle_since` is
    the pool's number of searches when the block became free; `garbage_collection_threshold` uses it. A block that was
    freed while another stream worked on it stays `allocated` until that stream is done.
    """

    __slots__ = ("address", "allocated", "idle_since", "mapped", "next", "owner", "pool", "prev", "requested_bytes",
                 "segment", "size")  # fmt: skip

    def __init__(self, pool: BlockPool, address: int, size: int, segment: ExpandableSegment | None) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.segment = segment
        self.allocated = False
        self.mapped = True
        self.prev: Block | None = None
        self.next: Block | None = None
        self.requested_bytes = 0
        self.owner = -1
        self.idle_since = 0

    @property
    def is_split(self) -> bool:
        """Whether the block is only a part of its segment."""
        return self.prev is not None or self.next is not None

    @property
    def expandable_size(self) -> int:
        """Its size and that of the unmapped range behind it, into which it can grow."""
        following = self.next
        return self.size if following is None or following.mapped else self.size + following.size

    def insert_between(self, before: Block | None, after: Block | None) -> None:
        """Inserts the block between two neighbours (`splice`)."""
        self.prev, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self


class BlockPool:
    """The free blocks of one pool and stream, ordered by size and then by address, and its unmapped ranges by address."""

    __slots__ = ("free", "is_small", "keys", "page_bytes", "searches", "stream", "unmapped", "unmapped_addresses")

    def __init__(self, *, is_small: bool, page_bytes: int, stream: int = 0, searches: list[int] | None = None) -> None:
        self.is_small = is_small
        self.page_bytes = page_bytes
        self.stream = stream
        self.keys: list[tuple[int, int]] = []
        """(size, address) of each free block, sorted."""
        self.free: dict[int, Block] = {}
        self.unmapped_addresses: list[int] = []
        self.unmapped: dict[int, Block] = {}
        self.searches = [0] if searches is None else searches
        """Number of searches for a block: one counter for the pools of all streams (`get_free_blocks_call_count`)."""

    def insert(self, block: Block) -> None:
        """Adds a block that became free."""
        block.idle_since = self.searches[0]
        insort(self.keys, (block.size, block.address))
        self.free[block.address] = block

    def remove(self, block: Block) -> None:
        """Removes a free block, which will be used."""
        del self.keys[bisect_left(self.keys, (block.size, block.address))]
        del self.free[block.address]

    def insert_unmapped(self, block: Block) -> None:
        """Adds a range without pages."""
        insort(self.unmapped_addresses, block.address)
        self.unmapped[block.address] = block

    def remove_unmapped(self, block: Block) -> None:
        """Removes a range without pages."""
        del self.unmapped_addresses[bisect_left(self.unmapped_addresses, block.address)]
        del self.unmapped[block.address]

    def in_order(self) -> list[Block]:
        """The free blocks, smallest first; a copy, so that the pool may change meanwhile."""
        return [self.free[address] for _, address in self.keys]

    def merge(self, block: Block, neighbour: Block | None) -> None:
        """Joins a free neighbour of the same kind to `block` (`try_merge_blocks`). `block` itself must be in no set."""
        if neighbour is None or neighbour.allocated or neighbour.mapped != block.mapped:
            return
        if neighbour.mapped:
            self.remove(neighbour)
        else:
            self.remove_unmapped(neighbour)
        if block.prev is neighbour:
            block.address = neighbour.address
            block.prev = neighbour.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            block.next = neighbour.next
            if block.next is not None:
                block.next.prev = block
        block.size += neighbour.size
