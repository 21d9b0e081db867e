"""Gradients of embeddings and of indexing, and the memory of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.core_probe import leaf, record, sizes

from axmem_trace.kernels.core.embedding import embedding_workspace

LONG, BOOL = torch.int64, torch.bool


def test_many_tokens_are_sorted():
    # 4096 tokens: sorted, origins, offsets 32,768 each; counts 8; 4096 segments: lengths and offsets 32,768 each;
    # 409 + 4096 = 4505 parts: offsets 36,040; sums 4505 * 512 * 4 = 9,226,240 in fp32
    expected = [32_768, 32_768, 32_768, 8, 32_768, 32_768, 8, 36_040, 9_226_240]
    assert embedding_workspace(4096, 8, 32_000, 512, 2) == expected
    table, tokens = leaf(32_000, 512), leaf(1, 4096, dtype=LONG, trains=False)
    seen = record(lambda: F.embedding(tokens, table))
    assert sizes(seen, phase="backward") == [32_000 * 512 * 2, *expected]


def test_there_are_no_more_segments_than_entries():
    # 100 segments; 819 + 100 = 919 parts of 64 fp32
    assert embedding_workspace(8192, 8, 100, 64, 4)[-1] == 919 * 64 * 4


def test_few_tokens_are_not_sorted():
    assert embedding_workspace(3072, 8, 32_000, 512, 2) == []
    assert embedding_workspace(3072, 8, 32_000, 512, 2, by_frequency=True) != []


def test_gradient_of_indexing_fills_its_zeros_and_sorts():
    x, index = leaf(1024, 256), leaf(128, dtype=LONG, trains=False)
    seen = record(lambda: x[index])
    # zeros 1024*256*2 = 524,288, filled in place; four tensors of 128 int64 and two of the sort
    assert sizes(seen, phase="backward") == [524_288, 1024, 1024, 1024, 1024, 2048]


def test_masked_scatter_makes_a_prefix_sum():
    x, image = leaf(1, 64, 128), leaf(10, 128, trains=False)
    mask = leaf(1, 64, 1, dtype=BOOL, trains=False)
    seen = record(lambda: x.detach().masked_scatter(mask.expand(1, 64, 128), image))
    # result 1*64*128*2 = 16,384; the expanded mask 8,192; a prefix sum in int64 65,536
    assert sizes(seen, phase="forward") == [16_384, 8_192, 65_536]
    assert sizes(record(lambda: x.detach().masked_scatter(mask.expand(1, 64, 128).contiguous(), image))) == [
        8_192,
        16_384,
        65_536,
    ]
