"""`CachingAllocator`, checked by hand. Numbers are in MiB; a comment says what PyTorch does and why."""

import pytest

from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.recipe.recipe import Allocator

KIB, MIB = 1 << 10, 1 << 20


def make(*, capacity_mib=0, **settings):
    """An allocator without expandable segments, unless they are requested."""
    settings = Allocator(**{"expandable_segments": False, **settings})
    return CachingAllocator(settings, capacity_bytes=capacity_mib * MIB, record_history=True)


def actions(caching):
    return [entry.action for entry in caching.accounts.history]


def driver_calls(caching):
    return [(entry.action, entry.size / MIB) for entry in caching.accounts.history if entry.action.startswith("segm")]


class TestSplitting:
    def test_small_blocks_are_split_from_512_bytes_on(self):
        caching = make()
        first, second = caching.malloc(1), caching.malloc(1)
        # 2 MiB segment: 512, 512, rest
        assert second.address == first.address + 512
        assert (caching.accounts.allocated_bytes, caching.accounts.reserved_bytes) == (1024, 2 * MIB)

    def test_a_small_rest_of_one_block_is_split_off(self):
        caching = make()
        # 1 MiB, then 1 MiB - 512: 512 bytes of the 2 MiB are left, which is enough to split
        caching.malloc(MIB)
        assert caching.malloc(MIB - 512).size == MIB - 512
        assert caching.malloc(512).size == 512
        assert caching.accounts.reserved_bytes == 2 * MIB

    def test_a_large_rest_of_1_mib_stays_with_the_block(self):
        caching = make()
        # 11 MiB -> segment of 12 MiB; the rest is 1 MiB, not more than kSmallSize: no split, and PyTorch counts 12
        assert caching.malloc(11 * MIB).size == 12 * MIB
        assert caching.accounts.allocated_bytes == 12 * MIB

    def test_a_large_rest_over_1_mib_is_split_off(self):
        caching = make()
        # 11 MiB - 512 -> segment of 12 MiB; the rest is 1 MiB + 512: split
        assert caching.malloc(11 * MIB - 512).size == 11 * MIB - 512
        assert caching.large.in_order()[0][1] == MIB + 512

    def test_20_mib_are_shared_by_requests_below_10(self):
        caching = make()
        # 1 MiB + 512 -> 20 MiB; then 9 and 9 MiB fit: 20 - 1 - 18 = 1 MiB - 512, which stays with the last
        caching.malloc(MIB + 512)
        assert caching.malloc(9 * MIB).size == 9 * MIB
        assert caching.malloc(9 * MIB).size == 10 * MIB - 512
        assert driver_calls(caching) == [("segment_alloc", 20)]

    def test_expandable_segments_split_large_blocks_from_512_bytes_on(self):
        caching = make(expandable_segments=True)
        assert caching.malloc(11 * MIB).size == 11 * MIB
        assert caching.accounts.allocated_bytes == 11 * MIB
        assert caching.accounts.reserved_bytes == 20 * MIB


class TestSearching:
    def test_the_smallest_block_that_fits(self):
        caching = make()
        large, small = caching.malloc(40 * MIB), caching.malloc(14 * MIB)
        caching.free(large)
        caching.free(small)
        # 13 MiB: the block of 14 is used, not the one of 40; the rest of 1 MiB stays with the block
        assert caching.malloc(13 * MIB).address == small.address

    def test_of_equal_blocks_the_one_at_the_lowest_address_is_used(self):
        caching = make()
        first, second = caching.malloc(20 * MIB), caching.malloc(20 * MIB)
        caching.free(second)
        caching.free(first)
        assert caching.malloc(20 * MIB).address == first.address

    def test_pools_do_not_mix(self):
        caching = make()
        caching.free(caching.malloc(30 * MIB))
        # 1 MiB is served by the small pool, even if the large pool has free memory
        caching.malloc(MIB)
        assert driver_calls(caching) == [("segment_alloc", 30), ("segment_alloc", 2)]

    def test_rounding_to_powers_of_2_enlarges_the_block(self):
        # 17.5 MiB in steps of 16/16 = 1 MiB: 18 MiB
        assert make(roundup_power2_divisions=16).malloc(17 * MIB + 512 * KIB).size == 18 * MIB


class TestJoining:
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
    def test_freed_neighbours_become_one(self, order):
        caching = make()
        blocks = [caching.malloc(5 * MIB) for _ in range(3)]
        # 20 MiB: 5, 5, 5 and 5 free
        for position in order:
            caching.free(blocks[position])
        assert caching.large.in_order() == [(blocks[0].address, 20 * MIB)]

    def test_a_block_in_use_keeps_its_neighbours_apart(self):
        caching = make()
        left, _middle, right = (caching.malloc(5 * MIB) for _ in range(3))
        caching.free(left)
        caching.free(right)
        # left 5; right 5 joined with the last 5
        assert [size for _, size in caching.large.in_order()] == [5 * MIB, 10 * MIB]


class TestEmptyCache:
    def test_a_partly_used_segment_stays(self):
        caching = make()
        kept, freed = caching.malloc(5 * MIB), caching.malloc(30 * MIB)
        caching.free(freed)
        caching.empty_cache()
        assert caching.accounts.reserved_bytes == 20 * MIB
        caching.free(kept)
        caching.empty_cache()
        assert (caching.accounts.reserved_bytes, caching.accounts.num_segments) == (0, 0)

    def test_completely_free_pages_of_expandable_segments_are_unmapped(self):
        caching = make(expandable_segments=True)
        low, _middle, high = (caching.malloc(30 * MIB) for _ in range(3))
        # 90 MiB in pages of 20: 100 reserved. Blocks at 0-30, 30-60, 60-90.
        assert caching.accounts.reserved_bytes == 100 * MIB
        caching.free(low)
        caching.free(high)
        caching.empty_cache()
        # 0-30: page 0-20 is unmapped, 20-40 is partly in use; 60-100: pages 60-80 and 80-100 are unmapped. 40 MiB stay.
        assert caching.accounts.reserved_bytes == 40 * MIB
        assert driver_calls(caching)[-2:] == [("segment_unmap", 20), ("segment_unmap", 40)]

    def test_unmapped_pages_are_mapped_again_at_the_same_place(self):
        caching = make(expandable_segments=True)
        low, _middle = caching.malloc(40 * MIB), caching.malloc(20 * MIB)
        address = low.address
        caching.free(low)
        caching.empty_cache()
        assert caching.accounts.reserved_bytes == 20 * MIB
        # The range without pages is first, and 30 MiB fit into its 40: two pages
        assert caching.malloc(30 * MIB).address == address
        assert caching.accounts.reserved_bytes == 60 * MIB


class TestExpandableSegments:
    def test_one_segment_grows_page_by_page(self):
        caching = make(expandable_segments=True)
        caching.malloc(15 * MIB)  # 20 mapped
        caching.malloc(15 * MIB)  # 5 are free, 10 are missing: one more page
        caching.malloc(15 * MIB)  # 10 are free, 5 are missing: one more page
        assert driver_calls(caching) == [("segment_map", 20)] * 3
        assert caching.accounts.num_segments == 1

    def test_small_pages_are_2_mib(self):
        caching = make(expandable_segments=True)
        for _ in range(3):
            caching.malloc(MIB)
        assert driver_calls(caching) == [("segment_map", 2)] * 2

    def test_a_block_that_can_grow_counts_with_its_largest_size(self):
        caching = make(expandable_segments=True)
        hole, _wall, end = caching.malloc(15 * MIB), caching.malloc(3 * MIB), caching.malloc(12 * MIB)
        address = hole.address
        # 30 MiB of 40: the free end has 10. Free the hole (15) and the last block: the end has 22 and can grow.
        caching.free(hole)
        caching.free(end)
        # 14 MiB: the smallest that fits is the hole (15)
        assert caching.malloc(14 * MIB).address == address

    def test_a_larger_block_is_used_instead_of_one_that_can_grow(self):
        caching = make(expandable_segments=True)
        hole, _wall = caching.malloc(40 * MIB), caching.malloc(5 * MIB)
        address = hole.address
        # 45 of 60 MiB: the end has 15 and can grow, the hole has 40 and cannot
        caching.free(hole)
        # 10 MiB: 15 is smaller, but counts as unlimited: the hole is used
        assert caching.malloc(10 * MIB).address == address


class TestOutOfMemory:
    def test_the_cache_is_freed_before_out_of_memory(self):
        caching = make(capacity_mib=100)
        caching.free(caching.malloc(60 * MIB))
        # 60 cached + 70 > 100: the 60 are freed, then 70 fit
        assert caching.malloc(70 * MIB) is not None
        assert driver_calls(caching) == [("segment_alloc", 60), ("segment_free", 60), ("segment_alloc", 70)]
        assert caching.accounts.num_retries == 1

    def test_a_full_card(self):
        caching = make(capacity_mib=100)
        caching.malloc(60 * MIB)
        assert caching.malloc(50 * MIB) is None
        entry = caching.accounts.history[-1]
        # 100 - 60 = 40 MiB are free
        assert (entry.action, entry.address, entry.size) == ("oom", 40 * MIB, 50 * MIB)

    def test_fragments_cannot_be_freed(self):
        caching = make(capacity_mib=40)
        blocks = [caching.malloc(5 * MIB) for _ in range(8)]  # two segments of 20
        for block in blocks[::2]:
            caching.free(block)
        # 20 MiB are free, in holes of 5
        assert caching.malloc(10 * MIB) is None

    def test_pages_of_expandable_segments_move(self):
        caching = make(capacity_mib=80, expandable_segments=True)
        blocks = [caching.malloc(20 * MIB) for _ in range(4)]
        caching.free(blocks[0])
        caching.free(blocks[2])
        # 40 MiB are free in two holes of 20, whose pages are unmapped. Addresses are reserved for 80 + 80 / 8 MiB, that
        # is 100 in pages. 20 remain after the last block, too few for 40: the pages are mapped in a second segment.
        assert caching.malloc(40 * MIB).address == blocks[0].address + 100 * MIB
        assert (caching.accounts.reserved_bytes, caching.accounts.num_segments) == (80 * MIB, 2)

    def test_without_expandable_segments_the_same_fails_only_within_one_segment(self):
        caching = make(capacity_mib=80)
        blocks = [caching.malloc(20 * MIB) for _ in range(4)]
        caching.free(blocks[0])
        caching.free(blocks[2])
        # four separate segments: two are freed
        assert caching.malloc(40 * MIB) is not None

    def test_the_memory_fraction_limits_what_is_reserved(self):
        caching = make(capacity_mib=100, per_process_memory_fraction=0.5)
        assert caching.malloc(50 * MIB) is not None
        assert caching.malloc(1) is None

    def test_expandable_growth_is_checked_with_the_size_of_a_plain_segment(self):
        # `alloc_block` compares the limit with get_allocation_size: 1.5 MiB -> 20 MiB; 12 MiB -> 12 MiB, though a page
        # of 20 MiB is then mapped
        caching = make(capacity_mib=100, per_process_memory_fraction=0.12, expandable_segments=True)
        assert caching.malloc(MIB + 512 * KIB) is None
        assert caching.malloc(12 * MIB) is not None
        assert caching.accounts.reserved_bytes == 20 * MIB


class TestMaxSplitSize:
    def test_oversize_blocks_are_not_used_for_smaller_requests(self):
        caching = make(max_split_size_bytes=32 * MIB)
        caching.free(caching.malloc(40 * MIB))
        caching.malloc(24 * MIB)
        assert driver_calls(caching) == [("segment_alloc", 40), ("segment_alloc", 24)]

    def test_oversize_requests_take_blocks_up_to_20_mib_larger(self):
        caching = make(max_split_size_bytes=32 * MIB)
        caching.free(caching.malloc(60 * MIB))
        # 60 < 40 + 20 is false, 60 < 40 MiB + 512 + 20 MiB is true; an oversize block is never split
        assert caching.malloc(40 * MIB).size == 40 * MIB
        assert caching.malloc(40 * MIB + 512).size == 60 * MIB

    def test_one_large_enough_oversize_block_is_freed(self):
        caching = make(capacity_mib=150, max_split_size_bytes=32 * MIB)
        for block in [caching.malloc(size * MIB) for size in (36, 100)]:
            caching.free(block)
        # 50: 100 is too large for it (100 >= 50 + 20); 136 + 50 > 150; the smallest block >= 50 is 100: it is freed
        assert caching.malloc(50 * MIB) is not None
        assert driver_calls(caching)[2:] == [("segment_free", 100), ("segment_alloc", 50)]

    def test_several_oversize_blocks_are_freed_largest_first(self):
        caching = make(capacity_mib=120, max_split_size_bytes=32 * MIB)
        for block in [caching.malloc(size * MIB) for size in (34, 36, 40)]:
            caching.free(block)
        # 70: no block is as large; 40 + 36 >= 70 are freed, 34 stays: 34 + 70 <= 120
        assert caching.malloc(70 * MIB) is not None
        assert driver_calls(caching)[3:] == [("segment_free", 40), ("segment_free", 36), ("segment_alloc", 70)]
        assert caching.accounts.num_retries == 0


class TestGarbageCollection:
    def test_segments_at_least_as_old_as_the_mean_are_freed(self):
        # 200 MiB allowed of 400, garbage above half of that: 100 MiB
        caching = make(capacity_mib=400, per_process_memory_fraction=0.5, garbage_collection_threshold=0.5)
        old, new = caching.malloc(60 * MIB), caching.malloc(50 * MIB)
        caching.free(old)
        caching.free(new)
        # 110 reserved > 100: if no block fits, a request first collects. Both are idle since the same search: both are
        # as old as the mean, so both are freed, although 10 MiB would be enough
        caching.malloc(70 * MIB)
        assert driver_calls(caching)[2:] == [("segment_free", 50), ("segment_free", 60), ("segment_alloc", 70)]

    def test_below_the_threshold_nothing_is_freed(self):
        caching = make(capacity_mib=400, per_process_memory_fraction=0.5, garbage_collection_threshold=0.5)
        caching.free(caching.malloc(60 * MIB))
        caching.malloc(70 * MIB)
        assert driver_calls(caching) == [("segment_alloc", 60), ("segment_alloc", 70)]

    def test_a_recently_used_block_stays(self):
        caching = make(capacity_mib=400, per_process_memory_fraction=0.5, garbage_collection_threshold=0.5)
        idle, busy = caching.malloc(60 * MIB), caching.malloc(50 * MIB)
        caching.free(idle)
        for _ in range(4):
            caching.free(busy)
            busy = caching.malloc(50 * MIB)
        caching.free(busy)
        # Ages: 60 has 4 searches and the coming one: 5; 50 has only the coming one: 1. Mean 3: the 60 are freed; 10
        # would be enough.
        caching.malloc(70 * MIB)
        assert driver_calls(caching)[2:] == [("segment_free", 60), ("segment_alloc", 70)]

    def test_without_a_limit_nothing_is_collected(self):
        caching = make(capacity_mib=400, garbage_collection_threshold=0.1)
        caching.free(caching.malloc(60 * MIB))
        caching.malloc(70 * MIB)
        assert driver_calls(caching) == [("segment_alloc", 60), ("segment_alloc", 70)]


def test_history_has_the_requested_sizes():
    caching = make()
    block = caching.malloc(1000, owner=7)
    caching.free(block)
    caching.empty_cache()
    assert actions(caching) == ["segment_alloc", "alloc", "free_requested", "free_completed", "segment_free"]
    # sizes of alloc and free are the requested sizes (PyTorch records orig_size), those of segments are the driver's
    assert [entry.size for entry in caching.accounts.history] == [2 * MIB, 1000, 1000, 1000, 2 * MIB]
    assert [entry.owner for entry in caching.accounts.history] == [7, 7, 7, 7, -1]


def test_the_share_of_the_card_is_rounded_to_the_nearest_byte():
    """0.7 * 700 MiB is 490 MiB, which in binary is very slightly less. As in PyTorch, 480 and 10 fit, and 2 more
    don't."""
    caching = make(capacity_mib=700, per_process_memory_fraction=0.7)
    assert [caching.malloc(size * MIB) is not None for size in (480, 10, 2)] == [True, True, False]
    assert caching.accounts.reserved_bytes == 490 * MIB
