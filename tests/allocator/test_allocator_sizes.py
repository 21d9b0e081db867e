"""Rounding, by hand (`round_size`, `get_allocation_size` of c10/cuda/CUDACachingAllocator.cpp)."""

import pytest

from axmem_trace.allocator.sizes import list_divisions, round_size, segment_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
OFF = list_divisions(0)


@pytest.mark.parametrize(
    ("nbytes", "block"), [(1, 512), (511, 512), (512, 512), (513, 1024), (1024, 1024), (MIB + 1, MIB + 512)]
)
def test_blocks_are_multiples_of_512(nbytes, block):
    assert round_size(nbytes, OFF) == block


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),  # small pool: 2 MiB for any request
        (MIB, 2 * MIB),  # 1 MiB is still small
        (MIB + 512, 20 * MIB),  # 1 MiB + one block: large pool, below 10 MiB: 20 MiB
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),  # from 10 MiB on: the next multiple of 2 MiB
        (11 * MIB, 12 * MIB),
        (12 * MIB, 12 * MIB),
        (12 * MIB + 512, 14 * MIB),
    ],
)
def test_segments(size, segment):
    assert segment_size(size, 20 * MIB) == segment


def test_large_segment_size_mb_replaces_the_20_mib():
    assert [segment_size(size, 64 * MIB) for size in (MIB, 2 * MIB, 10 * MIB)] == [2 * MIB, 64 * MIB, 10 * MIB]


@pytest.mark.parametrize(
    ("nbytes", "divisions", "block"),
    [
        # PyTorch's own example: 1200 with 4 divisions. 4 x 512 = 2048 >= 1200, so plain rounding: 3 x 512
        (1200, 4, 1536),
        # 1200 KiB is between 1024 and 2048 KiB; a quarter of 1024 is 256: 1024, 1280, ... -> 1280 KiB
        (1200 * KIB, 4, 1280 * KIB),
        # 16 divisions of 16 MiB: steps of 1 MiB; 17.5 -> 18 MiB
        (17 * MIB + 512 * KIB, 16, 18 * MIB),
        (16 * MIB, 16, 16 * MIB),  # a power of two stays
        (31 * MIB + 1, 16, 32 * MIB),
        # 16 x 512 = 8192: up to this size, plain rounding; one byte more in steps of 8192 / 16 = 512
        (8192, 16, 8192),
        (8193, 16, 8704),
        (3 * GIB + 1, 2, 4 * GIB),  # halves of 2 GiB: 2, 3, 4
        (5 * MIB + 1, 1, 5 * MIB + 512),  # 1 division switches it off
    ],
)
def test_power_of_2_divisions(nbytes, divisions, block):
    assert round_size(nbytes, list_divisions(divisions)) == block


def test_divisions_by_size_class():
    # [256:1,512:2,1024:4,>:8], in MiB: up to 511 MiB 1, up to 1023 MiB 2, up to 2047 MiB 4, beyond 8
    table = list_divisions(
        {1 << index: (1 if index <= 8 else 2 if index == 9 else 4 if index == 10 else 8) for index in range(16)}
    )
    assert table == (1,) * 9 + (2, 4) + (8,) * 5
    assert round_size(300 * MIB + 1, table) == 300 * MIB + 512  # 1: plain
    assert round_size(600 * MIB, table) == 768 * MIB  # halves of 512: 512, 768
    assert round_size(1100 * MIB, table) == 1280 * MIB  # quarters of 1024: 1024, 1280
    assert round_size(2100 * MIB, table) == 2304 * MIB  # eighths of 2048: 2048, 2304
    assert round_size(100 * GIB, table) == 104 * GIB  # last class: eighths of 64 GiB are 8: 64, ..., 96, 104


def test_divisions_below_the_first_class_named_are_its_own_and_unnamed_ones_are_off():
    assert list_divisions({4: 2, 16: 8}) == (2, 2, 2, 0, 8) + (0,) * 11
