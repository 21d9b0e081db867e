"""`CachingAllocator`: the behaviour of `c10::cuda::CUDACachingAllocator` on one device.

Source: `DeviceCachingAllocator` in c10/cuda/CUDACachingAllocator.cpp (torch 2.13); each method names the function that
it follows. Parts that a training step does not use are left out: private pools (CUDA graphs, `MemPool`), IPC, and the
callbacks that free memory before a new segment is requested. The caller handles events: it frees a block that another
stream still uses with `busy=True`, and calls `finish` when that stream has finished.

Addresses are invented, because a driver may return any addresses. Segments have addresses in the order of their
creation, and no address is used twice. Addresses matter only if two free blocks have the same size: then the block at
the lower address is taken.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from axmem_trace.allocator.accounts import UNLIMITED, Accounts
from axmem_trace.allocator.blocks import ADDRESS_BITS, ADDRESS_MASK, FIRST_ADDRESS, Block, BlockPool, PoolSettings
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
        capacity_bytes: the memory that the driver can allocate for this process; 0: no limit.
        record_history: whether every action is stored in `accounts.history`.
    """

    def __init__(self, settings: Allocator, *, capacity_bytes: int = 0, record_history: bool = False) -> None:
        self.accounts = Accounts(
            capacity_bytes=capacity_bytes,
            memory_fraction=settings.per_process_memory_fraction,
            record_history=record_history,
        )
        self.segments: dict[int, int] = {}
        """The size of each segment by its address."""
        grows, max_split_bytes = settings.expandable_segments, settings.max_split_size_bytes or UNLIMITED
        self.expandable = ExpandableSegments(self.accounts, self.segments) if grows else None
        self._settings = tuple(
            PoolSettings(
                is_small=is_small,
                grows=grows,
                page_bytes=SMALL_SEGMENT_BYTES if is_small else settings.large_segment_bytes,
                min_rest_bytes=MIN_BLOCK_BYTES if is_small or grows else SMALL_BYTES + MIN_BLOCK_BYTES,
                max_split_bytes=max_split_bytes,
                max_non_split_rounding_bytes=settings.max_non_split_rounding_bytes,
            )
            for is_small in (True, False)
        )
        self._divisions = list_divisions(settings.roundup_power2_divisions)
        self.rounds_further = any(self._divisions)
        """Whether sizes are rounded to more than whole blocks of 512 bytes."""
        self._max_split_bytes = max_split_bytes
        self._large_segment_bytes = settings.large_segment_bytes
        self._collects_garbage = settings.garbage_collection_threshold > 0 and self.accounts.allowed_bytes < UNLIMITED
        self._garbage_bytes = int(settings.garbage_collection_threshold * self.accounts.allowed_bytes)
        self._searches = ([0], [0])
        self._pools: dict[int, tuple[BlockPool, BlockPool]] = {}
        self.small, self.large = self._pools_of(0)
        self._busy: dict[int, Block] = {}
        self._next_address = FIRST_ADDRESS

    # -- what the program requests -------------------------------------------------------------------------------

    def round(self, nbytes: int) -> int:
        """The size of the block for a request of `nbytes` > 0 (`round_size`)."""
        return round_size(nbytes, self._divisions)

    def pool_of(self, size: int, stream: int = 0) -> BlockPool:
        """The pool that serves blocks of a size on a stream (`get_pool`)."""
        small, large = self._pools_of(stream)
        return small if size <= SMALL_BYTES else large

    def malloc(self, nbytes: int, owner: int = -1, stream: int = 0) -> Block | None:
        """A block for `nbytes` > 0 on a stream, or None if the card is full (`malloc`)."""
        size = self.round(nbytes)
        pool = self.pool_of(size, stream)
        self.accounts.owner = owner
        taken = pool.take(size) or self.make_space(pool, size)
        if taken is None:
            self.accounts.record("oom", self.accounts.free_bytes, nbytes)
            return None
        block = Block(pool, *taken, nbytes, owner, allocated=True)
        self.accounts.allocated_bytes += block.size
        self.accounts.record("alloc", block.address, nbytes)
        return block

    def free(self, block: Block, *, busy: bool = False) -> None:
        """Frees a block. `busy`: another stream still uses it, so it stays active until `finish` (`free`)."""
        self.accounts.allocated_bytes -= block.size
        self.accounts.owner = block.owner
        self.accounts.record("free_requested", block.address, block.requested_bytes)
        if busy:
            self._busy[block.address] = block
            self.accounts.busy_bytes += block.size
        else:
            self._free_block(block)

    def finish(self, block: Block) -> None:
        """The other streams have finished with a block that was freed as `busy` (`process_events`). It may be free
        already, because the host waits for all streams before the cache is emptied."""
        if self._busy.get(block.address) is block:
            del self._busy[block.address]
            self.accounts.busy_bytes -= block.size
            self._free_block(block)

    def _free_block(self, block: Block) -> None:
        block.allocated = False
        self.accounts.owner = block.owner
        self.accounts.record("free_completed", block.address, block.requested_bytes)
        block.pool.give(block.address, block.size)

    def empty_cache(self) -> None:
        """`torch.cuda.empty_cache`: frees every segment that has no block in use (`release_cached_blocks`)."""
        self.accounts.owner = -1
        self._release_cached_blocks()

    def list_segments(self, in_use: Iterable[Block]) -> list[list[Block]]:
        """Every range of neighbouring blocks with memory, by address. A snapshot calls such a range a segment
        (`snapshot`).

        Args:
            in_use: the blocks that `malloc` returned and that have not been freed.
        """
        segments: list[list[Block]] = []
        pools = [pool for pools in self._pools.values() for pool in pools]
        free = [Block(pool, address, size) for pool in pools for address, size in pool.sizes.items()]
        end = -1
        for block in sorted((*in_use, *free), key=lambda b: b.address):
            if block.address == end and end not in self.segments:
                segments[-1].append(block)
            else:
                segments.append([block])
            end = block.address + block.size
        return segments

    def _pools_of(self, stream: int) -> tuple[BlockPool, BlockPool]:
        """The small and the large pool of a stream, made when it requests its first block."""
        pools = self._pools.get(stream)
        if pools is None:
            small, large = (
                BlockPool(
                    settings, self.segments, stream=stream, searches=searches, collects_garbage=self._collects_garbage
                )
                for settings, searches in zip(self._settings, self._searches, strict=True)
            )
            pools = self._pools[stream] = (small, large)
        return pools

    def _all(self, *, small: bool) -> list[BlockPool]:
        """The pools of all streams, by stream."""
        return [self._pools[stream][0 if small else 1] for stream in sorted(self._pools)]

    # -- finding a block ------------------------------------------------------------------------------------------

    def make_space(self, pool: BlockPool, size: int) -> tuple[int, int] | None:
        """Address and size of a block in new memory. If the card is full, cached memory is freed first (`malloc`). None
        if that is still not enough.
        """
        if self._collects_garbage:
            self._collect_garbage()
        found = self._allocate_segment(pool, size)
        if found is None and self._release_available_cached_blocks(pool, size):
            found = self._allocate_segment(pool, size)
        if found is None:
            self._release_cached_blocks()
            self.accounts.num_retries += 1
            found = self._allocate_segment(pool, size)
        return None if found is None else pool.cut(found, size)

    # -- segments -------------------------------------------------------------------------------------------------

    def _allocate_segment(self, pool: BlockPool, size: int) -> int | None:
        """The address of a free block with new memory from the driver: pages of an expandable segment, or a segment
        from `cudaMalloc` (`alloc_block`)."""
        nbytes = segment_size(size, self._large_segment_bytes)
        if self.accounts.reserved_bytes + nbytes > self.accounts.allowed_bytes:
            return None
        if self.expandable is not None:
            return self.expandable.allocate(pool, size)
        if nbytes > self.accounts.free_bytes:
            return None
        address = self._next_address
        self._next_address += nbytes
        self.segments[address] = nbytes
        self.accounts.num_segments += 1
        self.accounts.change_reserved("segment_alloc", address, nbytes)
        pool.give(address, nbytes)
        return address

    def _release_segment(self, pool: BlockPool, address: int) -> None:
        """`cudaFree` of a segment that is one free block (`release_block`)."""
        size = pool.remove(address)
        del self.segments[address]
        self.accounts.num_segments -= 1
        self.accounts.change_reserved("segment_free", address, size)

    def _release_available_cached_blocks(self, pool: BlockPool, size: int) -> bool:
        """With `max_split_size`, frees oversize blocks to make space for the request
        (`release_available_cached_blocks`)."""
        if self._max_split_bytes == UNLIMITED or self.expandable is not None:
            return False
        wanted = max(size, self._max_split_bytes)
        position = bisect_left(pool.keys, wanted << ADDRESS_BITS)
        if position < len(pool.keys):
            self._release_segment(pool, pool.keys[position] & ADDRESS_MASK)
            return True
        released = 0
        while released < wanted and pool.keys and pool.keys[-1] >> ADDRESS_BITS >= self._max_split_bytes:
            largest = pool.keys[-1]
            released += largest >> ADDRESS_BITS
            self._release_segment(pool, largest & ADDRESS_MASK)
        return released >= wanted

    def _release_cached_blocks(self) -> None:
        """Frees every segment, or page, without a block in use (`release_cached_blocks`, `release_blocks`)."""
        for block in list(self._busy.values()):  # `synchronize_and_free_events`
            self.finish(block)
        for pool in (*self._all(small=False), *self._all(small=True)):
            for address, size in pool.in_order():
                if self.expandable is not None:
                    self.expandable.unmap(pool, address)
                elif pool.is_segment(address, size):
                    self._release_segment(pool, address)

    def _collect_garbage(self) -> None:
        """Above `garbage_collection_threshold`, frees the free segments that have been idle for the longest time
        (`garbage_collect_cached_blocks`). Expandable segments are kept."""
        target = self.accounts.reserved_bytes - self._garbage_bytes
        if target <= 0 or self.expandable is not None:
            return
        searches, reclaimed = self.large.searches[0], 0
        idle = [
            (pool, address, size, searches - (pool.idle_since or {})[address])
            for pool in self._all(small=False)
            for address, size in pool.in_order()
            if pool.is_segment(address, size)
        ]
        total_age = sum(age for *_, age in idle)
        while idle and reclaimed < target:
            mean_age, kept = total_age / len(idle), []
            for each in idle:
                pool, address, size, age = each
                if age < mean_age:
                    kept.append(each)
                    continue
                reclaimed += size
                total_age -= age
                self._release_segment(pool, address)
            if len(kept) == len(idle):
                break
            idle = kept
