"""Invariants of the allocator, and random ledgers to test them."""

import random
from itertools import pairwise

from axmem_trace.allocator.blocks import Block
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark

MIB = 1 << 20


def assert_sound(caching: CachingAllocator, in_use: dict[int, Block]) -> None:
    """Compares the allocator's counters with its blocks: sums, order without overlap, neighbours, and pools. Two
    neighbours must not both be free."""
    accounts, segments = caching.accounts, caching.list_segments(in_use.values())
    blocks = [block for segment in segments for block in segment]
    assert accounts.reserved_bytes == sum(block.size for block in blocks)
    assert accounts.allocated_bytes == sum(block.size for block in in_use.values()) <= accounts.reserved_bytes
    assert {id(block) for block in in_use.values()} == {id(block) for block in blocks if block.allocated}
    for left, right in pairwise(blocks):
        assert left.address + left.size <= right.address
    for segment in segments:
        for left, right in pairwise(segment):
            assert left.address + left.size == right.address
            assert left.allocated or right.allocated, "free neighbours are joined"
        settings, nbytes = segment[0].pool.settings, sum(block.size for block in segment)
        if not settings.grows:
            assert caching.segments[segment[0].address] == nbytes
        assert nbytes % (settings.page_bytes if settings.grows else 2 * MIB) == 0
    for pool in (caching.small, caching.large):
        by_size = sorted((size, address) for address, size in pool.sizes.items())
        assert pool.in_order() == [(address, size) for size, address in by_size]
        assert pool.starts == {address + size: address for address, size in pool.sizes.items()}
        assert pool.gap_addresses == sorted(pool.gaps)
        assert pool.gap_starts == {address + size: address for address, size in pool.gaps.items()}
    ranges = [(b.address, b.address + b.size) for b in blocks]
    ranges += [(a, a + size) for pool in (caching.small, caching.large) for a, size in pool.gaps.items()]
    ranges.sort()
    for (_, end), (start, _) in pairwise(ranges):
        assert end <= start
    assert sum(end - start for start, end in ranges) == sum(caching.segments.values())
    assert all(block.size >= block.requested_bytes and block.size % 512 == 0 for block in in_use.values())


def make_sizes(dice: random.Random) -> int:
    """A size that is typical of training: most sizes are small or repeated, some are large."""
    kind = dice.randrange(4)
    if kind == 0:
        return dice.randrange(0, 5000)
    if kind == 1:
        return dice.randrange(1, MIB + 1024)
    if kind == 2:
        return dice.choice((2 * MIB, 8 * MIB, 16 * MIB, 33 * MIB))
    return dice.randrange(MIB, 40 * MIB)


def make_ledger(seed: int, *, num_allocations: int = 300, all_die: bool = False) -> Ledger:
    """A random ledger: allocations and frees in alternation, four phases in two steps, and one `empty_cache` in the
    middle."""
    dice, allocated, freed, sizes, alive, tick = random.Random(seed), [], {}, [], [], 0
    while len(allocated) < num_allocations or (all_die and alive):
        tick += 1
        if alive and (len(allocated) == num_allocations or dice.random() < 0.47):
            freed[alive.pop(dice.randrange(len(alive)))] = tick
        else:
            alive.append(len(allocated))
            allocated.append(tick)
            sizes.append(make_sizes(dice))
    lives = zip(sizes, allocated, strict=True)
    allocations = tuple(
        Allocation(nbytes=nbytes, allocated_tick=start, freed_tick=freed.get(index, NEVER))
        for index, (nbytes, start) in enumerate(lives)
    )
    phases = (("forward", 1), ("backward", 1), ("forward", 2), ("backward", 2))
    marks = tuple(Mark(tick=rank * tick // 4, phase=phase, step=step) for rank, (phase, step) in enumerate(phases))
    return Ledger(allocations=allocations, marks=marks, ticks=tick + 1, empty_cache_ticks=(tick // 2,))
