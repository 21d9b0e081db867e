"""Blocks in use, and the pools of free blocks.

Sources: `Block`, `BlockPool`, `BlockComparatorSize` in c10/cuda/CUDACachingAllocator.cpp (torch 2.13). PyTorch sorts a
pool's free blocks by stream first, and never uses a block for another stream; here each stream has its own pools. Free
blocks are numbers in dictionaries, not objects with links to their neighbours, because a replay handles hundreds of
thousands of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

from axmem_trace.allocator.accounts import UNLIMITED
from axmem_trace.allocator.sizes import MIN_BLOCK_BYTES

FIRST_ADDRESS = 0x3000_0000_0000
"""Address of the first segment: 47 bits, like CUDA's addresses on Linux."""
ADDRESS_BITS = 56
"""More bits than an address has. The key of a block is one number, `size << ADDRESS_BITS | address`. PyTorch searches
in the order of these keys, and numbers are compared faster than pairs."""
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1


@dataclass(slots=True, eq=False)
class Block:
    """A range of addresses that is either allocated or free.

    While the block is allocated, `torch.cuda.memory_allocated` counts its `size`. `requested_bytes` is the requested
    size, and `owner` is its allocation. A block that was freed while another stream used it stays `allocated` until
    that stream has finished.
    """

    pool: BlockPool
    address: int
    size: int
    requested_bytes: int = 0
    owner: int = -1
    allocated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Settings of all pools of one kind.

    Attributes:
        is_small: whether it serves requests of up to 1 MiB.
        grows: whether its segments are expandable.
        page_bytes: page size of an expandable segment: 2 MiB in the small pool, `large_segment_bytes` (20 MiB) in the
            large one.
        min_rest_bytes: if a block is larger than needed, it is split if the rest has at least this size
            (`should_split`).
        max_split_bytes: blocks of at least this size are not split, and are not used for smaller requests.
        max_non_split_rounding_bytes: by how much such a block may exceed a request.
    """

    is_small: bool
    grows: bool
    page_bytes: int
    min_rest_bytes: int
    max_split_bytes: int = UNLIMITED
    max_non_split_rounding_bytes: int = 0

    @property
    def limits_splits(self) -> bool:
        """Whether `max_split_size_mb` is set."""
        return self.max_split_bytes < UNLIMITED


class BlockPool:
    """The free blocks of one pool and stream, and its ranges of addresses without memory ("gaps").

    Attributes:
        keys: the key of each free block, sorted.
        sizes: the size of each free block, by its address.
        starts: the address of each free block, by its end.
        gaps, gap_starts, gap_addresses: the same for the ranges without pages; `gap_addresses` is sorted.
        segments: size of each segment of the allocator by its address. Blocks of two segments are never joined.
        searches: number of searches for a block; one counter for the pools of all streams
            (`get_free_blocks_call_count`).
        idle_since: the value of `searches` when a block became free, by its address; None if it is not needed.
    """

    __slots__ = (
        "_always_cuts",
        "_limits_splits",
        "_min_rest_bytes",
        "gap_addresses",
        "gap_starts",
        "gaps",
        "idle_since",
        "keys",
        "searches",
        "segments",
        "settings",
        "sizes",
        "starts",
        "stream",
    )

    def __init__(
        self,
        settings: PoolSettings,
        segments: Mapping[int, int],
        *,
        stream: int,
        searches: list[int],
        collects_garbage: bool,
    ) -> None:
        self.settings, self.segments, self.stream, self.searches = settings, segments, stream, searches
        self.idle_since: dict[int, int] | None = {} if collects_garbage else None
        self._limits_splits, self._min_rest_bytes = settings.limits_splits, settings.min_rest_bytes
        self._always_cuts = settings.min_rest_bytes == MIN_BLOCK_BYTES and not (
            settings.limits_splits or collects_garbage
        )
        self.keys: list[int] = []
        self.sizes: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.gaps: dict[int, int] = {}
        self.gap_starts: dict[int, int] = {}
        self.gap_addresses: list[int] = []

    # -- free blocks --------------------------------------------------------------------------------------------------

    def take(self, size: int) -> tuple[int, int] | None:
        """Takes a block of at least `size` from the smallest free block that is large enough (`get_free_block`).
        Returns its address and size; None if there is none."""
        if self.idle_since is not None:
            self.searches[0] += 1
        keys = self.keys
        position = bisect_left(keys, size << ADDRESS_BITS)
        if position == len(keys):
            return None
        key = keys[position]
        if (key & ADDRESS_MASK) + (key >> ADDRESS_BITS) in self.gaps:
            position = self._best_of_growing(position)
        if self._limits_splits and self._is_kept_whole(keys[position] >> ADDRESS_BITS, size):
            return None
        return self._cut(position, size)

    def cut(self, address: int, size: int) -> tuple[int, int]:
        """Takes a block of at least `size` from this free block. Returns its address and size."""
        return self._cut(bisect_left(self.keys, self.sizes[address] << ADDRESS_BITS | address), size)

    def _cut(self, position: int, size: int) -> tuple[int, int]:
        """Removes a free block. If its rest is large enough, the rest stays free (`alloc_found_block`)."""
        keys = self.keys
        key = keys[position]
        address, found = key & ADDRESS_MASK, key >> ADDRESS_BITS
        del self.sizes[address]
        rest, behind = found - size, address + size
        if rest < self._min_rest_bytes or (self._limits_splits and self._is_never_split(size)):
            del keys[position]
            del self.starts[address + found]
            return address, found
        self.sizes[behind] = rest
        self.starts[address + found] = behind
        key = rest << ADDRESS_BITS | behind
        if position == 0 or keys[position - 1] < key:
            keys[position] = key
        else:
            del keys[position]
            insort(keys, key, 0, position)
        if self.idle_since is not None:
            self.idle_since[behind] = self.searches[0]
        return address, size

    def give(self, address: int, size: int) -> None:
        """Adds a block that became free, and joins it with its free neighbours (`free_block`, `try_merge_blocks`)."""
        keys, sizes, starts, end = self.keys, self.sizes, self.starts, address + size
        more = sizes.get(end)
        if more is not None and end not in self.segments:
            del keys[bisect_left(keys, more << ADDRESS_BITS | end)]
            del sizes[end]
            size += more
        before = starts.get(address)
        if before is not None and address not in self.segments:
            more = sizes[before]
            del keys[bisect_left(keys, more << ADDRESS_BITS | before)]
            del starts[address]
            address = before
            size += more
        sizes[address] = size
        starts[address + size] = address
        insort(keys, size << ADDRESS_BITS | address)
        if self.idle_since is not None:
            self.idle_since[address] = self.searches[0]

    def remove(self, address: int) -> int:
        """Removes a free block; returns its size."""
        size = self.sizes.pop(address)
        del self.starts[address + size]
        del self.keys[bisect_left(self.keys, size << ADDRESS_BITS | address)]
        return size

    def serves(self, size: int) -> bool:
        """Whether a block of exactly `size` can be taken. If such a block is freed directly afterwards, the pool is as
        before."""
        keys = self.keys
        return bool(keys) and keys[-1] >> ADDRESS_BITS >= size and self._always_cuts

    def in_order(self) -> list[tuple[int, int]]:
        """Address and size of each free block, smallest first. It is a copy, so the pool may change while it is
        read."""
        return [(key & ADDRESS_MASK, key >> ADDRESS_BITS) for key in self.keys]

    def is_segment(self, address: int, size: int) -> bool:
        """Whether a block is a whole segment."""
        return self.segments.get(address) == size

    def _best_of_growing(self, position: int) -> int:
        """A block that can grow counts with the size to which it can grow, so a later block may fit better."""
        keys = self.keys
        while position + 1 < len(keys) and self._grown(keys[position + 1]) < self._grown(keys[position]):
            position += 1
        return position

    def _grown(self, key: int) -> int:
        """The block's size, plus the size of the range without pages behind it, into which it can grow."""
        end = (key & ADDRESS_MASK) + (size := key >> ADDRESS_BITS)
        return size + (self.gaps.get(end, 0) if end not in self.segments else 0)

    def _is_kept_whole(self, found: int, size: int) -> bool:
        """Whether `max_split_size_mb` forbids the use of a block of `found` bytes for a request."""
        settings = self.settings
        if size < settings.max_split_bytes:
            return found >= settings.max_split_bytes
        return found >= size + settings.max_non_split_rounding_bytes

    def _is_never_split(self, size: int) -> bool:
        settings = self.settings
        return size >= settings.max_split_bytes and not settings.grows and not settings.is_small

    # -- ranges without pages -----------------------------------------------------------------------------------------

    def insert_gap(self, address: int, size: int) -> int:
        """Adds a range without pages, and joins it with neighbouring ranges without pages; returns its address."""
        end = address + size
        if end in self.gaps and end not in self.segments:
            size += self.remove_gap(end)
        before = self.gap_starts.get(address)
        if before is not None and address not in self.segments:
            size += self.remove_gap(before)
            address = before
        self.gaps[address] = size
        self.gap_starts[address + size] = address
        insort(self.gap_addresses, address)
        return address

    def remove_gap(self, address: int) -> int:
        """Removes a range without pages; returns its size."""
        size = self.gaps.pop(address)
        del self.gap_starts[address + size]
        del self.gap_addresses[bisect_left(self.gap_addresses, address)]
        return size
