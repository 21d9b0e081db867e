"""Streams: each has its own blocks, and a block that another stream still uses is not reused. By hand, in MiB."""

from __future__ import annotations

from axmem_trace.allocator import replay
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.recipe.recipe import Allocator

MIB = 1 << 20
PLAIN = Allocator(expandable_segments=False)


def test_a_free_block_is_used_only_by_its_stream() -> None:
    caching = CachingAllocator(PLAIN)
    caching.free(caching.malloc(32 * MIB, stream=1))
    # stream 0 gets a new segment; stream 1 reuses its old one
    assert caching.malloc(32 * MIB, stream=0) is not None
    assert caching.accounts.reserved_bytes == 64 * MIB
    assert caching.malloc(32 * MIB, stream=1) is not None
    assert caching.accounts.reserved_bytes == 64 * MIB


def test_each_expandable_segment_belongs_to_one_stream() -> None:
    caching = CachingAllocator(Allocator())
    first, second = caching.malloc(30 * MIB, stream=0), caching.malloc(30 * MIB, stream=2)
    assert caching.accounts.num_segments == 2
    # pages of 20 MiB: 40 each
    assert caching.accounts.reserved_bytes == 80 * MIB
    caching.free(first)
    caching.free(second)
    caching.empty_cache()
    assert (caching.accounts.reserved_bytes, caching.accounts.num_segments) == (0, 0)


def test_a_busy_block_is_active_and_not_allocated() -> None:
    caching = CachingAllocator(PLAIN)
    block = caching.malloc(32 * MIB)
    caching.free(block, busy=True)
    accounts = caching.accounts
    assert (accounts.allocated_bytes, accounts.busy_bytes) == (0, 32 * MIB)
    caching.malloc(32 * MIB)  # the busy block is not used
    assert (accounts.reserved_bytes, accounts.busy_bytes) == (64 * MIB, 32 * MIB)
    caching.finish(block)
    again = caching.malloc(32 * MIB)
    assert again is not None
    assert again.address == block.address
    assert accounts.reserved_bytes == 64 * MIB


def test_before_the_cache_is_emptied_the_host_waits_for_all_streams() -> None:
    caching = CachingAllocator(PLAIN, capacity_bytes=40 * MIB)
    block = caching.malloc(32 * MIB)
    caching.free(block, busy=True)
    assert caching.malloc(36 * MIB) is not None  # after a retry that freed the busy block
    assert caching.accounts.num_retries == 1
    caching.finish(block)  # nothing is left to do
    assert caching.accounts.busy_bytes == 0


def test_a_replay_reuses_a_block_when_the_other_stream_has_finished() -> None:
    # 0 is freed at 3, and another stream uses it until 5: 1, allocated at 4, can't use it; 2, allocated at 6, can
    allocations = (
        Allocation(nbytes=32 * MIB, allocated_tick=2, freed_tick=3, busy_until=5),
        Allocation(nbytes=32 * MIB, allocated_tick=4),
        Allocation(nbytes=32 * MIB, allocated_tick=6),
    )
    marks = (Mark(tick=1, phase="forward", step=1),)
    found = replay(Ledger(allocations=allocations, marks=marks, ticks=7), PLAIN)
    assert found.peak_reserved_bytes == found.peak_active_bytes == 64 * MIB
    assert found.peak_allocated_bytes == 64 * MIB
    assert found.active_peaks[("forward", 1)] == 64 * MIB


def test_active_exceeds_allocated_by_blocks_in_use_on_another_stream() -> None:
    allocations = (
        Allocation(nbytes=32 * MIB, allocated_tick=2, freed_tick=3, busy_until=NEVER),
        Allocation(nbytes=MIB, allocated_tick=4, stream=3),
    )
    marks = (Mark(tick=1, phase="forward", step=1),)
    found = replay(Ledger(allocations=allocations, marks=marks, ticks=5), PLAIN)
    assert (found.peak_allocated_bytes, found.peak_active_bytes) == (32 * MIB, 33 * MIB)
