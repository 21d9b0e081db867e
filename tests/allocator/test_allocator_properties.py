"""Properties of all allocations with all settings: random ledgers, and a check of every block."""

import pytest
from support.allocator_soundness import MIB, assert_sound, make_ledger

from axmem_trace.allocator import parse_alloc_conf, replay
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.allocator.replay import Replay
from axmem_trace.ledger import Allocation, Ledger

SETTINGS = (
    "expandable_segments:False",
    "expandable_segments:True",
    "expandable_segments:False,roundup_power2_divisions:16",
    "expandable_segments:True,roundup_power2_divisions:[16:4,>:8]",
    "expandable_segments:False,max_split_size_mb:24",
    "expandable_segments:False,large_segment_size_mb:64",
    "expandable_segments:False,garbage_collection_threshold:0.02,per_process_memory_fraction:0.9",
)
CAPACITY = 6 << 30


def act(caching, ledger):
    """Replays by hand; yields the blocks in use after each allocation or free."""
    in_use = {}
    for tick, index, frees in ledger.moves():
        caching.accounts.tick = tick
        if frees and index in in_use:
            caching.free(in_use.pop(index))
        elif not frees and ledger.allocations[index].nbytes:
            block = caching.malloc(ledger.allocations[index].nbytes, index)
            if block is None:
                return
            in_use[index] = block
        yield in_use


@pytest.mark.parametrize("text", SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_the_counters_are_right_after_every_move(text, seed):
    caching = CachingAllocator(parse_alloc_conf(text), capacity_bytes=CAPACITY)
    for in_use in act(caching, make_ledger(seed)):
        assert_sound(caching, in_use)


@pytest.mark.parametrize("expandable", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_counters_are_right_on_a_card_that_is_too_small(expandable, seed):
    settings, ledger = parse_alloc_conf(f"expandable_segments:{expandable}"), make_ledger(seed)
    capacity_bytes = replay(ledger, settings).peak_reserved_bytes * 2 // 3
    caching = CachingAllocator(settings, capacity_bytes=capacity_bytes)
    for in_use in act(caching, ledger):
        assert_sound(caching, in_use)
        assert caching.accounts.reserved_bytes <= capacity_bytes
    assert caching.accounts.num_retries > 0


@pytest.mark.parametrize("seed", range(3))
def test_these_histories_leave_cached_blocks(seed):
    collecting = replay(make_ledger(seed), parse_alloc_conf(SETTINGS[-1]), capacity_bytes=CAPACITY)
    plain = replay(make_ledger(seed), parse_alloc_conf(SETTINGS[0]), capacity_bytes=CAPACITY)
    assert len(collecting.timeline) > len(plain.timeline)


@pytest.mark.parametrize("text", SETTINGS)
def test_everything_is_freed_at_the_end(text):
    ledger = make_ledger(11, all_die=True)
    replayed = Replay(ledger, CachingAllocator(parse_alloc_conf(text), capacity_bytes=CAPACITY))
    assert replayed.run().peak_allocated_bytes > 0
    caching = replayed.caching
    # all are freed, so everything that remains is cached ...
    assert caching.accounts.allocated_bytes == 0
    assert all(not block.allocated for segment in caching.list_segments(()) for block in segment)
    caching.empty_cache()
    # ... and can be freed
    assert (caching.accounts.reserved_bytes, caching.accounts.num_segments) == (0, 0)
    assert caching.list_segments(()) == []
    assert not caching.large.gaps
    assert not caching.small.gaps
    assert not caching.segments


@pytest.mark.parametrize("seed", range(4))
def test_the_driver_allocates_only_if_no_cached_block_fits(seed):
    caching, ledger = CachingAllocator(parse_alloc_conf("")), make_ledger(seed)
    in_use = {}
    for _, index, frees in ledger.moves():
        if frees:
            if index in in_use:
                caching.free(in_use.pop(index))
            continue
        nbytes = ledger.allocations[index].nbytes
        size = -(-nbytes // 512) * 512
        pool = caching.small if size <= MIB else caching.large
        best = min(((found, address) for address, found in pool.sizes.items() if found >= size), default=None)
        before = caching.accounts.reserved_bytes
        if not nbytes:
            continue
        in_use[index] = caching.malloc(nbytes)
        if best is None:
            assert caching.accounts.reserved_bytes > before
        else:
            assert caching.accounts.reserved_bytes == before
            assert in_use[index].address == best[1]


@pytest.mark.parametrize("seed", range(6))
def test_reserved_is_never_below_allocated(seed):
    ledger = make_ledger(seed)
    ticks, levels = ledger.levels
    for text in SETTINGS:
        reservation = replay(ledger, parse_alloc_conf(text), capacity_bytes=CAPACITY)
        assert reservation.out_of_memory is None
        assert all(reservation.reserved_at(tick) >= live for tick, live in zip(ticks, levels, strict=True))
        assert reservation.peak_reserved_bytes >= reservation.peak_allocated_bytes >= ledger.peak().allocated_bytes
        assert reservation.fragmentation_bytes >= 0


@pytest.mark.parametrize("seed", range(6))
def test_expandable_segments_allocate_the_ledgers_bytes_and_waste_less(seed):
    ledger = make_ledger(seed, num_allocations=1500)
    expandable = replay(ledger, parse_alloc_conf("expandable_segments:True"))
    plain = replay(ledger, parse_alloc_conf("expandable_segments:False"))
    # every rest of a block is split off, so the allocated bytes are the sum of the sizes rounded to 512, also in each
    # phase
    assert expandable.peak_allocated_bytes == ledger.peak().allocated_bytes
    for (phase, step), allocated_bytes in expandable.allocated_peaks.items():
        assert allocated_bytes == ledger.peak(phase=phase, step=step).allocated_bytes
    # rests of up to 1 MiB stay with large blocks
    assert plain.peak_allocated_bytes > ledger.peak().allocated_bytes
    # whole pages of one segment, compared with a segment for every large request
    assert expandable.fragmentation_bytes < plain.fragmentation_bytes
    assert (expandable.num_segments, plain.num_segments > 10) == (2, True)


def test_a_card_of_exactly_the_reserved_size_is_large_enough():
    ledger = make_ledger(5)
    for text in ("expandable_segments:True", "expandable_segments:False"):
        settings = parse_alloc_conf(text)
        endless = replay(ledger, settings)
        fitting = replay(ledger, settings, capacity_bytes=endless.peak_reserved_bytes)
        assert fitting.out_of_memory is None
        assert (fitting.num_retries, fitting.timeline) == (0, endless.timeline)
        tight = replay(ledger, settings, capacity_bytes=endless.peak_reserved_bytes - 1)
        assert tight.num_retries > 0 or tight.out_of_memory


@pytest.mark.parametrize("text", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_fast_replay_equals_the_one_with_history(text, seed):
    """With a history, each block is an object and each move calls `malloc` or `free`."""
    ledger, settings = make_ledger(seed), parse_alloc_conf(text)
    needed = replay(ledger, settings, capacity_bytes=CAPACITY).peak_reserved_bytes
    ended = set()
    for capacity_bytes in (CAPACITY, needed, needed * 3 // 4, needed // 2, needed // 5):
        fast = replay(ledger, settings, capacity_bytes=capacity_bytes)
        recorded = Replay(ledger, CachingAllocator(settings, capacity_bytes=capacity_bytes, record_history=True)).run()
        assert fast == recorded
        ended.add(fast.out_of_memory is not None)
    assert ended == {True, False}


def test_a_short_allocation_is_in_use_while_the_cache_is_emptied():
    # 30 MiB of 40 cached MiB are allocated and freed by the next move; between the two, the cache is emptied
    lives = (
        Allocation(nbytes=40 * MIB, allocated_tick=1, freed_tick=2),
        Allocation(nbytes=30 * MIB, allocated_tick=3, freed_tick=5),
    )
    for text, left in (("expandable_segments:False", 40), ("expandable_segments:True", 40)):
        ledger = Ledger(allocations=lives, marks=(), ticks=9, empty_cache_ticks=(4,))
        assert replay(ledger, parse_alloc_conf(text)).timeline[-1] == (1, left * MIB)
