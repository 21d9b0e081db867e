"""Expandable segments: one range of addresses per pool that grows page by page.

Source: `find_expandable_block`, `map_block`, `try_allocate_expandable_block`, `unmap_block`,
`release_expandable_segment` and `ExpandableSegment::map`, `unmap` in c10/cuda/CUDACachingAllocator.cpp (torch 2.13).
"""

from __future__ import annotations

from axmem_trace.allocator.accounts import UNLIMITED, Accounts
from axmem_trace.allocator.blocks import FIRST_ADDRESS, Block, BlockPool, ExpandableSegment

ENDLESS_RANGE_BYTES = 1 << 44
"""Addresses reserved where memory is unlimited: 16 TiB, or as much as one request needs."""


class ExpandableSegments:
    """The expandable segments of both pools."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._next_address = FIRST_ADDRESS

    def allocate(self, pool: BlockPool, size: int) -> Block | None:
        """A free block of at least `size`, removed from its pool; pages that it lacks are mapped. None if pages run out.

        Pages mapped before they ran out stay with the pool, as they do in PyTorch (`try_allocate_expandable_block`).
        """
        block = self._find(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.next
            assert following is not None, "the chain found is long enough"
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following  # merged with the block before it
        pool.remove(block)
        return block

    def unmap(self, block: Block) -> None:
        """Unmaps the full pages inside a free block (`unmap_block`)."""
        segment, pool = block.segment, block.pool
        assert segment is not None, "only blocks of expandable segments have pages"
        begin, end = segment.next_page(block.address), segment.last_page(block.address + block.size)
        if begin >= end:
            return
        pool.remove(block)
        if begin > block.address:
            before = Block(pool, block.address, begin - block.address, segment)
            before.insert_between(block.prev, block)
            pool.insert(before)
        if block.address + block.size > end:
            after = Block(pool, end, block.address + block.size - end, segment)
            after.insert_between(block, block.next)
            pool.insert(after)
        block.address, block.size, block.mapped = begin, end - begin, False
        pool.merge(block, block.prev)
        pool.merge(block, block.next)
        pool.insert_unmapped(block)
        self._accounts.change_reserved("segment_unmap", begin, end - begin)
        if not block.is_split:  # no page left: `release_expandable_segment`
            pool.remove_unmapped(block)
            self._accounts.num_segments -= 1

    def _find(self, pool: BlockPool, size: int) -> Block:
        """The start of the first chain of free and unmapped blocks that is long enough (`find_expandable_block`)."""
        for address in pool.unmapped_addresses:
            start = pool.unmapped[address]
            if start.prev is not None and not start.prev.allocated:
                start = start.prev
            room, following = start.size, start.next
            while room < size and following is not None and not following.allocated:
                room += following.size
                following = following.next
            if room >= size:
                return start
        return self._reserve(pool, size)

    def _reserve(self, pool: BlockPool, size: int) -> Block:
        """A new segment: addresses for 1 1/8 of the card, no pages yet."""
        capacity = self._accounts.capacity_bytes
        wanted = capacity + capacity // 8 if capacity < UNLIMITED else max(ENDLESS_RANGE_BYTES, size)
        length = -(-wanted // pool.page_bytes) * pool.page_bytes
        segment = ExpandableSegment(address=self._next_address, page_bytes=pool.page_bytes)
        self._next_address += length
        self._accounts.num_segments += 1
        block = Block(pool, segment.address, length, segment)
        block.mapped = False
        pool.insert_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Puts pages under the first `size` bytes, rounded up to whole pages; all or none (`map_block`)."""
        segment, pool = block.segment, block.pool
        assert segment is not None, "only blocks of expandable segments have pages"
        nbytes = -(-size // segment.page_bytes) * segment.page_bytes
        if nbytes > self._accounts.free_bytes:
            return False
        pool.remove_unmapped(block)
        block.mapped = True
        if nbytes < block.size:
            rest = Block(pool, block.address + nbytes, block.size - nbytes, segment)
            rest.mapped = False
            rest.insert_between(block, block.next)
            pool.insert_unmapped(rest)
            block.size = nbytes
        self._accounts.change_reserved("segment_map", block.address, nbytes)
        pool.merge(block, block.prev)
        pool.merge(block, block.next)
        pool.insert(block)
        return True
