"""`CachingAllocator`: what `c10::cuda::CUDACachingAllocator` does on one device.

Source: `DeviceCachingAllocator` in c10/cuda/CUDACachingAllocator.cpp (torch 2.13); each method names the function that
it follows. Left out, because a training step does not reach it: private pools (CUDA graphs, `MemPool`), IPC, and the
callbacks that free memory before a new segment is requested. The caller keeps track of events: a block that another
stream works on is freed with `busy=True`, and the caller calls `finish` when that stream is done.

Addresses are invented here: a driver may return any. Segments are in order of creation and addresses are not used
twice; they matter only where two free blocks have the same size (the one at the lower address is taken).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from axmem_trace.allocator.accounts import UNLIMITED, Accounts
from axmem_trace.allocator.blocks import FIRST_ADDRESS, Block, BlockPool
from axmem_trace.allocator.expandable import ExpandableSegments
from axmem_trace.allocator.sizes import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    list_divisions,
    round_size,
    segment_size,
)
from axmem_trace.recipe.recipe import Allocator


class CachingAllocator:
    """The state of the allocator, and the operations that a program can do: `malloc`, `free`, `empty_cache`.

    Args:
        settings: as parsed from `PYTORCH_ALLOC_CONF`.
        capacity_bytes: what the driver can give to this process; 0: no limit.
        record_history: keep every action in `accounts.history`.
    """

    def __init__(self, settings: Allocator, *, capacity_bytes: int = 0, record_history: bool = False) -> None:
        self.accounts = Accounts(capacity_bytes=capacity_bytes, memory_fraction=settings.per_process_memory_fraction,
                                 record_history=record_history)  # fmt: skip
        self.small = BlockPool(is_small=True, page_bytes=SMALL_SEGMENT_BYTES)
        self.large = BlockPool(is_small=False, page_bytes=settings.large_segment_bytes)
        self.expandable = ExpandableSegments(self.accounts) if settings.expandable_segments else None
        self._divisions = list_divisions(settings.roundup_power2_divisions)
        self._max_split_bytes = settings.max_split_size_bytes or UNLIMITED
        self._max_non_split_rounding_bytes = settings.max_non_split_rounding_bytes
        self._collects_garbage = settings.garbage_collection_threshold > 0 and self.accounts.allowed_bytes < UNLIMITED
        self._garbage_bytes = int(settings.garbage_collection_threshold * self.accounts.allowed_bytes)
        self._pools = {0: (self.small, self.large)}
        self._busy: dict[int, Block] = {}
        self._next_address = FIRST_ADDRESS
        self._rounded: dict[int, int] = {}

    # -- what the program asks for --------------------------------------------------------------------------------

    def malloc(self, nbytes: int, owner: int = -1, stream: int = 0) -> Block | None:
        """A block for `nbytes` > 0 on a stream, or None if the card is full (`malloc`, `alloc_found_block`)."""
        size = self._rounded.get(nbytes)
        if size is None:
            size = self._rounded[nbytes] = round_size(nbytes, self._divisions)
        self.accounts.owner = owner
        small, large = self._pools.get(stream) or self._add_stream(stream)
        pool = small if size <= SMALL_BYTES else large
        block = self._find_free_block(pool, size) or self._make_room(pool, size)
        if block is None:
            self.accounts.record("oom", self.accounts.free_bytes, nbytes)
            return None
        if self._should_split(block, size):
            block = self._split(block, size)
        block.allocated = True
        block.requested_bytes = nbytes
        block.owner = owner
        self.accounts.change_allocated(block.size)
        if self.accounts.history is not None:
            self.accounts.record("alloc", block.address, nbytes)
        return block

    def free(self, block: Block, *, busy: bool = False) -> None:
        """Takes a block back. `busy`: another stream still works on it, so it stays active until `finish` (`free`)."""
        self.accounts.change_allocated(-block.size)
        if self.accounts.history is not None:
            self.accounts.owner = block.owner
            self.accounts.record("free_requested", block.address, block.requested_bytes)
        if busy:
            self._busy[block.address] = block
            self.accounts.change_busy(block.size)
        else:
            self._free_block(block)

    def finish(self, block: Block) -> None:
        """The other streams are done with a block that was freed `busy` (`process_events`). It may be free already: before
        the cache is emptied the host waits for all streams."""
        if self._busy.get(block.address) is block:
            del self._busy[block.address]
            self.accounts.change_busy(-block.size)
            self._free_block(block)

    def _free_block(self, block: Block) -> None:
        """Joins a block with its free neighbours (`free_block`)."""
        block.allocated = False
        if self.accounts.history is not None:
            self.accounts.owner = block.owner
            self.accounts.record("free_completed", block.address, block.requested_bytes)
        pool = block.pool
        if block.prev is not None:
            pool.merge(block, block.prev)
        if block.next is not None:
            pool.merge(block, block.next)
        pool.insert(block)

    def empty_cache(self) -> None:
        """`torch.cuda.empty_cache`: frees every segment that has no block in use (`release_cached_blocks`)."""
        self.accounts.owner = -1
        self._release_cached_blocks()

    def list_segments(self, in_use: Iterable[Block]) -> list[list[Block]]:
        """Every stretch of neighbouring blocks with memory, by address: what a snapshot calls a segment (`snapshot`).

        Args:
            in_use: the blocks that `malloc` returned and that have not been freed.
        """
        segments: list[list[Block]] = []
        free = [block for pools in self._pools.values() for pool in pools for block in pool.free.values()]
        for block in sorted((*in_use, *free), key=lambda b: b.address):
            if block.prev is not None and block.prev.mapped:
                segments[-1].append(block)
            else:
                segments.append([block])
        return segments

    def _add_stream(self, stream: int) -> tuple[BlockPool, BlockPool]:
        """Creates the pools of a stream when it requests its first block."""
        small, large = (
            BlockPool(is_small=pool.is_small, page_bytes=pool.page_bytes, stream=stream, searches=pool.searches)
            for pool in (self.small, self.large)
        )
        self._pools[stream] = (small, large)
        return small, large

    def _all(self, *, small: bool) -> list[BlockPool]:
        """The pools of all streams, by stream."""
        return [self._pools[stream][0 if small else 1] for stream in sorted(self._pools)]

    # -- finding a block ------------------------------------------------------------------------------------------

    def _find_free_block(self, pool: BlockPool, size: int) -> Block | None:
        """Removes the smallest free block that is large enough from its pool and returns it (`get_free_block`)."""
        if self._collects_garbage:
            pool.searches[0] += 1
        keys, position = pool.keys, bisect_left(pool.keys, (size,))
        if position == len(keys):
            return None
        block = pool.free[keys[position][1]]
        if block.segment is not None:
            # A block that can grow counts as large as it can become, so a later one may be the better fit.
            while position + 1 < len(keys):
                following = pool.free[keys[position + 1][1]]
                if following.expandable_size >= block.expandable_size:
                    break
                block, position = following, position + 1
        if size < self._max_split_bytes <= block.size:
            return None
        if size >= self._max_split_bytes and block.size >= size + self._max_non_split_rounding_bytes:
            return None
        del keys[position]
        del pool.free[block.address]
        return block

    def _make_room(self, pool: BlockPool, size: int) -> Block | None:
        """A block of new memory; if the card is full, cached memory is freed first (`malloc`)."""
        if self._collects_garbage:
            self._collect_garbage()
        block = self._allocate_segment(pool, size)
        if block is None and self._release_available_cached_blocks(pool, size):
            block = self._allocate_segment(pool, size)
        if block is None:
            self._release_cached_blocks()
            self.accounts.num_retries += 1
            block = self._allocate_segment(pool, size)
        return block

    def _should_split(self, block: Block, size: int) -> bool:
        """Whether the rest of a found block goes back to the pool (`should_split`)."""
        remaining = block.size - size
        if block.pool.is_small or self.expandable is not None:
            return remaining >= MIN_BLOCK_BYTES
        return size < self._max_split_bytes and remaining > SMALL_BYTES

    def _split(self, remaining: Block, size: int) -> Block:
        """Cuts a block of `size` off the front; the rest becomes free (`alloc_found_block`)."""
        pool = remaining.pool
        block = Block(pool, remaining.address, size, remaining.segment)
        block.insert_between(remaining.prev, remaining)
        remaining.address += size
        remaining.size -= size
        pool.insert(remaining)
        return block

    # -- segments -------------------------------------------------------------------------------------------------

    def _allocate_segment(self, pool: BlockPool, size: int) -> Block | None:
        """New memory from the driver: pages of an expandable segment, or a segment by `cudaMalloc` (`alloc_block`)."""
        nbytes = segment_size(size, self.large.page_bytes)
        if self.accounts.reserved_bytes + nbytes > self.accounts.allowed_bytes:
            return None
        if self.expandable is not None:
            return self.expandable.allocate(pool, size)
        if nbytes > self.accounts.free_bytes:
            return None
        block = Block(pool, self._next_address, nbytes, None)
        self._next_address += nbytes
        self.accounts.num_segments += 1
        self.accounts.change_reserved("segment_alloc", block.address, nbytes)
        return block

    def _release_block(self, block: Block) -> None:
        """`cudaFree` of a segment that is one free block (`release_block`)."""
        block.pool.remove(block)
        self.accounts.num_segments -= 1
        self.accounts.change_reserved("segment_free", block.address, block.size)

    def _release_available_cached_blocks(self, pool: BlockPool, size: int) -> bool:
        """With `max_split_size`: frees oversize blocks to make space for the request
        (`release_available_cached_blocks`)."""
        if self._max_split_bytes == UNLIMITED or self.expandable is not None:
            return False
        wanted = max(size, self._max_split_bytes)
        position = bisect_left(pool.keys, (wanted,))
        if position < len(pool.keys):
            self._release_block(pool.free[pool.keys[position][1]])
            return True
        released = 0
        while released < wanted and pool.keys and pool.keys[-1][0] >= self._max_split_bytes:
            largest = pool.free[pool.keys[-1][1]]
            released += largest.size
            self._release_block(largest)
        return released >= wanted

    def _release_cached_blocks(self) -> None:
        """Frees every segment, or page, without a block in use (`release_cached_blocks`, `release_blocks`)."""
        for block in list(self._busy.values()):  # `synchronize_and_free_events`
            self.finish(block)
        for pool in (*self._all(small=False), *self._all(small=True)):
            free = pool.in_order()
            for block in free:
                if block.segment is None and not block.is_split:
                    self._release_block(block)
            if self.expandable is not None:
                for block in free:
                    self.expandable.unmap(block)

    def _collect_garbage(self) -> None:
        """`garbage_collection_threshold`: above it, frees the free segments that were idle for longest
        (`garbage_collect_cached_blocks`)."""
        target = self.accounts.reserved_bytes - self._garbage_bytes
        if target <= 0:
            return
        searches, reclaimed = self.large.searches[0], 0
        idle = [block for pool in self._all(small=False) for block in pool.in_order() if not block.is_split]
        total_age = sum(searches - block.idle_since for block in idle)
        while idle and reclaimed < target:
            mean_age, kept = total_age / len(idle), []
            for block in idle:
                age = searches - block.idle_since
                if age < mean_age or block.segment is not None:
                    kept.append(block)
                    continue
                reclaimed += block.size
                total_age -= age
                self._release_block(block)
            if len(kept) == len(idle):
                break
            idle = kept
