"""Partial sums of CUDA's reductions, by hand from Reduce.cuh."""

from __future__ import annotations

import pytest
import torch
from support.core_probe import FP32, L40S, leaf, record, sizes

from axmem_trace.kernels.core.reductions import _Threads, partial_result_bytes

A100, L40S_THREADS = _Threads(108, 2048), _Threads(142, 1536)


def _sum_rows(rows, columns, card):
    return partial_result_bytes((rows, columns), (columns, 1), frozenset({1}), 4, card)


def test_gradient_of_a_norms_weight():
    # 4096 outputs in vectors of 4, so 1024 columns of threads; 512 / 4 = 128 threads a block: 32 wide, 4 high; grid
    # 1024 / 32 = 32; 4096 / 4 = 1024 values a thread; 2048 / 128 = 16 blocks per SM, 16 * 108 = 1728; ceil(1728 / 32) =
    # 54, ceil(1024 / 16) = 64, ceil(1024 / 256) = 4: 54 blocks; 4 * 4096 * 54 * (32 * 4) = 113,246,208; counters 32 * 4
    assert _sum_rows(4096, 4096, A100) == (113_246_208, 128)
    # L40S: 1536 / 128 = 12 blocks per SM, 12 * 142 = 1704; ceil(1704 / 32) = 54
    assert _sum_rows(4096, 4096, L40S_THREADS) == (113_246_208, 128)


def test_few_rows_need_no_second_block():
    # 1020 / 4 = 255 values a thread, fewer than 256
    assert _sum_rows(1020, 4096, A100) == ()
    # 1024 / 4 = 256: ceil(256 / 16) = 16 blocks, at most 54; 4 * 4096 * 16 * 128 = 33,554,432
    assert _sum_rows(1024, 4096, A100) == (33_554_432, 128)


def test_columns_that_do_not_divide_by_four():
    # in vectors of 2: 2050 / 2 = 1025 threads wide, 256 a block: 32 wide, 8 high; grid ceil(1025 / 32) = 33; 4096 / 8 =
    # 512 values; 2048 / 256 = 8, 864; ceil(864 / 33) = 27, ceil(512 / 16) = 32: 27; 4 * 2050 * 27 * (32 * 2) =
    # 14,169,600
    assert _sum_rows(4096, 2050, A100) == (14_169_600, 132)


def test_mean_of_each_row_is_one_block():
    assert partial_result_bytes((4096, 4096), (4096, 1), frozenset({0}), 4, A100) == ()


def test_sum_of_everything_keeps_one_number_per_block():
    # 2^24 / 4 elements, 512 threads wide; 2^24 / 512 = 32,768 values; 2048 / 512 = 4, 432; ceil(432 / 1) = 432,
    # 2048, 128: 432 blocks of one fp32, one counter. Not split across warps (the block is one row high): no
    # `block.y`, but a height of 1 still counts as split, for 32,768 >= 16
    assert partial_result_bytes((1 << 24,), (1,), frozenset(), 4, A100) == (1728, 4)


def test_neighbouring_dimensions_count_as_one():
    flat = _sum_rows(4096, 4096, A100)
    assert partial_result_bytes((2, 2048, 4096), (2048 * 4096, 4096, 1), frozenset({2}), 4, A100) == flat


def test_partial_sums_exist_for_trained_norms_and_not_for_frozen_ones():
    x = leaf(1, 4096, 4096)
    trained = record(lambda: x * leaf(4096), capability=L40S)
    frozen = record(lambda: x * leaf(4096, trains=False), capability=L40S)
    assert 113_246_208 in sizes(trained, phase="backward")
    assert 113_246_208 not in sizes(frozen)


def test_bools_are_copied_to_integers_and_halves_are_not():
    mask, half = leaf(64, 64, dtype=torch.bool, trains=False), leaf(64, 64, trains=False)
    assert sizes(record(lambda: mask.sum(-1))) == [64 * 8, 64 * 64 * 8]
    assert sizes(record(lambda: half.sum(-1, dtype=FP32))) == [64 * 4]


@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp_copies_its_input(keepdim):
    x = leaf(64, 1000, dtype=FP32, trains=False)
    # result 64 * 4; maxima 64 * 4; exponentials 64 * 1000 * 4
    assert sizes(record(lambda: x.logsumexp(-1, keepdim=keepdim))) == [256, 256, 256_000]
