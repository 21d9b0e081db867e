"""Expandable segments: for each pool one range of addresses, which grows page by page.

Source: `find_expandable_block`, `map_block`, `try_allocate_expandable_block`, `unmap_block`,
`release_expandable_segment` and `ExpandableSegment::map`, `unmap` in c10/cuda/CUDACachingAllocator.cpp (torch 2.13).
"""

from __future__ import annotations

from bisect import bisect_right

from axmem_trace.allocator.accounts import UNLIMITED, Accounts
from axmem_trace.allocator.blocks import FIRST_ADDRESS, BlockPool

ENDLESS_RANGE_BYTES = 1 << 44
"""The size of the address range with unlimited memory: 16 TiB, or as much as one request needs."""


class ExpandableSegments:
    """The expandable segments of all pools. `segments` maps the address of each to its size."""

    def __init__(self, accounts: Accounts, segments: dict[int, int]) -> None:
        self._accounts, self._segments = accounts, segments
        self._next_address = FIRST_ADDRESS

    def allocate(self, pool: BlockPool, size: int) -> int | None:
        """The address of a free block of at least `size`. Missing pages are mapped. None if there are not enough pages.

        Pages that were mapped before the pages ran out stay in the pool, as in PyTorch
        (`try_allocate_expandable_block`).
        """
        address = self._find(pool, size)
        while (found := pool.sizes.get(address, 0)) < size:
            gap = address + found
            if not self._map(pool, gap, min(size - found, pool.gaps[gap])):
                return None
        return address

    def unmap(self, pool: BlockPool, address: int) -> None:
        """Unmaps the full pages inside a free block (`unmap_block`)."""
        page, segment = pool.settings.page_bytes, self._segment_of(address)
        end = address + pool.sizes[address]
        first = segment - (segment - address) // page * page  # the first page boundary at or after it (`segmentRight`)
        last = segment + (end - segment) // page * page  # the last one at or before its end (`segmentLeft`)
        if first >= last:
            return
        pool.remove(address)
        if first > address:
            pool.give(address, first - address)
        if end > last:
            pool.give(last, end - last)
        gap = pool.insert_gap(first, last - first)
        self._accounts.change_reserved("segment_unmap", first, last - first)
        if pool.gaps[gap] == self._segments[segment]:  # no page left: `release_expandable_segment`
            pool.remove_gap(gap)
            del self._segments[segment]
            self._accounts.num_segments -= 1

    def _segment_of(self, address: int) -> int:
        starts = sorted(self._segments)
        return starts[bisect_right(starts, address) - 1]

    def _find(self, pool: BlockPool, size: int) -> int:
        """The start of the first sequence of free and unmapped ranges that is long enough (`find_expandable_block`)."""
        for gap in pool.gap_addresses:
            start = gap if gap in self._segments else pool.starts.get(gap, gap)
            end = start
            while end == start or end not in self._segments:
                following = pool.sizes.get(end) or pool.gaps.get(end)
                if following is None:
                    break
                end += following
                if end - start >= size:
                    return start
        return self._reserve(pool, size)

    def _reserve(self, pool: BlockPool, size: int) -> int:
        """Makes a new segment: addresses for 1 1/8 of the card's memory, without pages."""
        capacity, page = self._accounts.capacity_bytes, pool.settings.page_bytes
        wanted = capacity + capacity // 8 if capacity < UNLIMITED else max(ENDLESS_RANGE_BYTES, size)
        length, address = -(-wanted // page) * page, self._next_address
        self._next_address += length
        self._segments[address] = length
        self._accounts.num_segments += 1
        return pool.insert_gap(address, length)

    def _map(self, pool: BlockPool, gap: int, size: int) -> bool:
        """Maps pages to the first `size` bytes of a gap, rounded up to whole pages: all or none (`map_block`)."""
        nbytes = -(-size // pool.settings.page_bytes) * pool.settings.page_bytes
        if nbytes > self._accounts.free_bytes:
            return False
        length = pool.remove_gap(gap)
        if nbytes < length:
            pool.insert_gap(gap + nbytes, length - nbytes)
        self._accounts.change_reserved("segment_map", gap, nbytes)
        pool.give(gap, nbytes)
        return True
