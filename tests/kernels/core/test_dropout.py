"""Dropout keeps one byte for each element if CUDA has a kernel for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.core_probe import leaf, record, sizes
from torch import nn


@pytest.mark.parametrize(
    "run",
    [lambda x: F.dropout(x, 0.1), nn.Dropout(0.1), lambda x: torch.dropout(x, 0.1, True), lambda x: F.dropout(x)],
)
def test_an_output_and_a_mask_of_bytes(run):
    x = leaf(2, 64, 128)
    seen = record(lambda: run(x))
    # out 2*64*128*2 = 32,768; mask 2*64*128 = 16,384; dx 32,768
    assert sizes(seen) == [32_768, 16_384, 32_768]
    assert sizes(seen, kept=True) == [32_768, 16_384]


@pytest.mark.parametrize("run", [lambda x: F.dropout(x, 0.0), lambda x: F.dropout(x, 0.5, training=False)])
def test_without_dropout_nothing_is_allocated(run):
    x = leaf(2, 64, 128)
    assert sizes(record(lambda: run(x)), phase="forward") == []


def test_a_rate_of_one_multiplies_by_a_zero():
    x = leaf(2, 64, 128)
    # `_dropout`: a zero of 2 bytes, and its product with the input
    assert sizes(record(lambda: F.dropout(x, 1.0)), phase="forward") == [2, 32_768]


def test_in_place_keeps_noise_as_wide_as_the_input():
    x = leaf(2, 64, 128)
    # x * 1 has 32,768 bytes; its noise has as many
    assert sizes(record(lambda: F.dropout(x * 1, 0.1, inplace=True)), phase="forward") == [32_768, 32_768]
