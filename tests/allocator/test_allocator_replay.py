"""`replay` of ledgers of a few allocations: marks, cache, card, fields of `Reservation`."""

import pytest

from axmem_trace.allocator import OutOfMemory, replay
from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.recipe.recipe import Allocator

MIB = 1 << 20
PLAIN = Allocator(expandable_segments=False)
GROWING = Allocator(expandable_segments=True)


def life(nbytes, allocated, freed=NEVER, **facts):
    return Allocation(nbytes=nbytes, allocated_tick=allocated, freed_tick=freed, **facts)


def make_ledger(*allocations, marks=(), empty_cache_ticks=()):
    return Ledger(allocations=allocations, marks=marks, ticks=100, empty_cache_ticks=empty_cache_ticks)


THREE = (
    life(30 * MIB, 1),  # weights
    life(12 * MIB, 2, 5),  # an activation
    life(8 * MIB, 3, 4),  # a transient
)
MARKS = (
    Mark(tick=0, phase="load", step=0),
    Mark(tick=2, phase="forward", step=1),
    Mark(tick=4, phase="backward", step=1),
)


def test_plain_segments():
    reservation = replay(make_ledger(*THREE, marks=MARKS), PLAIN)
    # 30 -> 30; 12 -> 12; 8 -> 20
    assert reservation.timeline == ((1, 30 * MIB), (2, 42 * MIB), (3, 62 * MIB))
    assert (reservation.peak_reserved_bytes, reservation.peak_tick) == (62 * MIB, 3)
    assert reservation.peak_allocated_bytes == 50 * MIB
    assert reservation.fragmentation_bytes == 12 * MIB  # 20 - 8
    assert reservation.num_segments == 3
    assert reservation.out_of_memory is None


def test_expandable_segments():
    reservation = replay(make_ledger(*THREE, marks=MARKS), GROWING)
    # pages of 20: 30 -> 40; 12: 10 are free, one page -> 60; 8 of the 18 left
    assert reservation.timeline == ((1, 40 * MIB), (2, 60 * MIB))
    assert (reservation.num_segments, reservation.allocated_at_peak_bytes) == (1, 42 * MIB)


def test_reserved_at_includes_the_events_of_the_tick():
    reservation = replay(make_ledger(*THREE), PLAIN)
    assert [reservation.reserved_at(tick) // MIB for tick in range(5)] == [0, 30, 42, 62, 62]


def test_a_phase_begins_with_what_is_reserved():
    reservation = replay(make_ledger(*THREE, marks=MARKS), PLAIN)
    assert reservation.peaks == {("load", 0): 30 * MIB, ("forward", 1): 62 * MIB, ("backward", 1): 62 * MIB}
    # backward begins with all three: the transient is freed at its first tick
    assert reservation.allocated_peaks == {("load", 0): 30 * MIB, ("forward", 1): 50 * MIB, ("backward", 1): 50 * MIB}


def test_memory_at_the_end_of_a_phase_counts_whole_blocks():
    # 9.5 of a segment of 20 are split off, the rest of 10.5 is free; 10 use all of it, because 0.5 is too small to
    # split.
    ledger = make_ledger(life(19 * MIB // 2, 1), life(10 * MIB - 512, 2), life(30 * MIB, 3, 4), marks=MARKS)
    ends = replay(ledger, PLAIN).allocated_ends
    assert ends == {("load", 0): 19 * MIB // 2, ("forward", 1): 50 * MIB, ("backward", 1): 20 * MIB}
    # expandable segments split every rest off
    assert replay(ledger, GROWING).allocated_ends[("backward", 1)] == 39 * MIB // 2 - 512
    assert ledger.allocated_at(100) == 39 * MIB // 2 - 512


def test_separate_intervals_of_one_phase_have_one_peak():
    marks = (
        Mark(tick=0, phase="forward", step=1),
        Mark(tick=2, phase="backward", step=1),
        Mark(tick=4, phase="forward", step=1, micro_batch=1),
    )
    ledger = make_ledger(life(30 * MIB, 1, 2), life(12 * MIB, 3, 4), life(50 * MIB, 5, 6), marks=marks)
    # 12 use the 30 cached; 50 need a separate segment: 80
    assert replay(ledger, PLAIN).peaks == {("forward", 1): 80 * MIB, ("backward", 1): 30 * MIB}


def test_empty_cache_comes_before_the_mark_and_the_allocations_of_its_tick():
    ledger = make_ledger(
        life(30 * MIB, 1, 2), life(40 * MIB, 3), marks=(Mark(tick=3, phase="backward", step=1),), empty_cache_ticks=(3,)
    )
    reservation = replay(ledger, PLAIN)
    assert reservation.timeline == ((1, 30 * MIB), (3, 0), (3, 40 * MIB))
    assert reservation.peaks == {("load", 0): 30 * MIB, ("backward", 1): 40 * MIB}
    assert reservation.reserved_at(3) == 40 * MIB


def test_empty_cache_after_the_last_move():
    ledger = make_ledger(life(30 * MIB, 1, 2), empty_cache_ticks=(9,))
    assert replay(ledger, GROWING).timeline == ((1, 40 * MIB), (9, 0))


def test_only_the_gpu_counts_and_zero_bytes_need_no_memory():
    ledger = make_ledger(life(0, 1, 2), life(MIB, 3, device="cpu"), life(MIB, 4, device="managed"))
    reservation = replay(ledger, PLAIN)
    assert (reservation.timeline, reservation.peak_reserved_bytes, reservation.num_segments) == ((), 0, 0)


def test_an_empty_ledger():
    reservation = replay(make_ledger(), GROWING)
    assert (reservation.peak_reserved_bytes, reservation.peaks, reservation.reserved_at(5)) == (0, {}, 0)


def test_an_allocation_and_a_free_at_one_tick():
    assert replay(make_ledger(life(MIB, 4, 4)), PLAIN).peak_reserved_bytes == 2 * MIB


def test_out_of_memory():
    reservation = replay(make_ledger(*THREE, marks=MARKS), PLAIN, capacity_bytes=60 * MIB)
    # 30 + 12 + 20 > 60, and nothing is cached
    assert reservation.out_of_memory == OutOfMemory(
        tick=3,
        index=2,
        requested_bytes=8 * MIB,
        allocated_bytes=42 * MIB,
        reserved_bytes=42 * MIB,
        capacity_bytes=60 * MIB,
    )
    assert reservation.peak_reserved_bytes == 42 * MIB
    assert reservation.num_retries == 1
    assert ("backward", 1) not in reservation.peaks  # the run did not reach it


def test_the_same_run_fits_the_card_with_expandable_segments():
    assert replay(make_ledger(*THREE, marks=MARKS), GROWING, capacity_bytes=60 * MIB).out_of_memory is None


def test_a_smaller_card_changes_the_reserved_memory():
    ledger = make_ledger(life(30 * MIB, 1, 2), life(40 * MIB, 3), life(20 * MIB, 4))
    # unlimited: 30 cached, 40, and 20 of the 30; with 60 MiB, the 30 are freed before the 40 are allocated
    assert replay(ledger, PLAIN).peak_reserved_bytes == 70 * MIB
    reservation = replay(ledger, PLAIN, capacity_bytes=60 * MIB)
    assert (reservation.peak_reserved_bytes, reservation.num_retries) == (60 * MIB, 1)


def test_pages_mapped_before_memory_ran_out_count_for_the_peak():
    # 200 MiB allowed. 30 -> pages 0-40; 140 -> 10 are free, pages up to 180 (170 used); the 30 are freed, 170-180 are
    # free. 35 fit neither before (30) nor after (10 + one page = 30; two pages = 220 > 200): the cache is freed (0-20),
    # and then 35 = 10 + two pages: 160 + 40 = 200 fit.
    ledger = make_ledger(life(30 * MIB, 1, 3), life(140 * MIB, 2), life(35 * MIB, 4))
    reservation = replay(ledger, GROWING, capacity_bytes=200 * MIB)
    assert [(tick, held // MIB) for tick, held in reservation.timeline] == [(1, 40), (2, 180), (4, 160), (4, 200)]
    assert (reservation.peak_reserved_bytes, reservation.peak_tick) == (200 * MIB, 4)
    assert reservation.peak_allocated_bytes == 175 * MIB


def test_the_reservation_is_frozen():
    with pytest.raises(AttributeError):
        replay(make_ledger(), PLAIN).peak_reserved_bytes = 1
