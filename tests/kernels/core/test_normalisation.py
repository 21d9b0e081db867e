"""Norms and softmax: the tensors that CUDA's kernels keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.core_probe import BF16, FP16, FP32, leaf, record, sizes

from axmem_trace.kernels.core.normalisation import partial_gradient_bytes


def test_rms_norm_keeps_one_number_per_row():
    x, w = leaf(2, 64, 128), leaf(128)
    seen = record(lambda: F.rms_norm(x, (128,), w))
    # out 2*64*128*2 = 32,768; reciprocals 2*64*4 = 512; dx 32,768; dw 256
    assert sizes(seen) == [32_768, 512, 32_768, 256]
    assert sizes(seen, kept=True) == [32_768, 512]


def test_rms_norm_without_weight_and_as_a_module():
    x = leaf(2, 64, 128)
    assert sizes(record(lambda: F.rms_norm(x, (128,)))) == [32_768, 512, 32_768]
    norm = torch.nn.RMSNorm(128, device="meta", dtype=BF16)
    assert sizes(record(lambda: norm(x))) == [32_768, 512, 32_768, 256]


def test_a_weight_of_another_dtype_uses_the_unfused_formula():
    x, w = leaf(2, 64, 128), leaf(128, dtype=FP32)
    assert len(sizes(record(lambda: F.rms_norm(x, (128,), w)), kept=True)) > 3


def test_rms_norm_under_autocast_is_in_fp32():
    x, w = leaf(2, 64, 128), leaf(128, dtype=FP32)
    # an fp32 copy of x, kept, and the fp32 output: 65,536 each; reciprocals 512
    assert sizes(record(lambda: F.rms_norm(x, (128,), w), autocast=BF16), kept=True) == [65_536, 65_536, 512]


def test_norms_of_heads_sum_gradients_in_two_passes():
    # 131,072 rows of 128: grid 4 wide, at most 32,768 / 4 = 8192 high, 131,072 / 32 = 4096: 4096 * 128 * 2 = 1,048,576
    assert partial_gradient_bytes(131_072, 128, 2, 108, 1) == [1_048_576, 256]
    assert partial_gradient_bytes(131_072, 128, 2, 108, 2) == [1_048_576, 1_048_576, 256, 256]
    assert partial_gradient_bytes(65_536, 128, 2, 108, 1) == []
    # 108 / 2 = 54 columns of 32: with 1728 and more, it is not needed
    assert partial_gradient_bytes(131_072, 1728, 2, 108, 1) == []


def test_layer_norm_keeps_fp32_statistics():
    x, w, b = leaf(1, 1024, 64), leaf(64), leaf(64)
    seen = record(lambda: F.layer_norm(x, (64,), w, b))
    # out 131,072; mean and reciprocal 1024 * 4 each
    assert sizes(seen, kept=True) == [131_072, 4_096, 4_096]


@pytest.mark.parametrize("softmax", [F.softmax, torch.softmax, torch.Tensor.softmax, F.log_softmax])
def test_softmax_reads_fp16_and_writes_fp32(softmax):
    x = leaf(8, 100, dtype=FP16)
    seen = record(lambda: softmax(x, -1, dtype=FP32))
    assert sizes(seen, kept=True) == [3_200]  # 8 * 100 * 4: no fp32 copy of x
    # again in fp16; softmax also multiplies gradient and output in fp32
    assert sizes(seen, phase="backward") == ([1_600] if softmax is F.log_softmax else [1_600, 3_200])


def test_softmax_backward_also_makes_the_product_of_gradient_and_output():
    """As in PyTorch's CUDA build: 8 bytes for each element at the same time for fp32, 12 if the gradient has another
    memory order."""
    x = leaf(4, 8, 64, dtype=FP32)
    seen = record(lambda: F.softmax(x, -1))
    # the gradient of x, 4*8*64*4 = 8,192, and the product
    assert sizes(seen, phase="backward") == [8_192, 8_192]
    seen = record(lambda: F.softmax(x, -1).transpose(0, 1).contiguous())
    # the product in the transposed order, and a contiguous copy
    assert sizes(seen, phase="backward") == [8_192] * 3


def test_softmax_copies_bf16_first():
    x = leaf(8, 100)
    assert sizes(record(lambda: F.softmax(x, -1, dtype=FP32)), phase="forward") == [3_200, 3_200]


def test_cross_entropy_under_autocast_has_bf16_logarithms_and_their_fp32_copy():
    logits, labels = leaf(64, 1000), leaf(64, dtype=torch.int64, trains=False)
    seen = record(lambda: F.cross_entropy(logits, labels), autocast=BF16)
    # log-softmax 64*1000*2 = 128,000; in fp32 256,000; loss and weight 4 each
    assert sizes(seen, kept=True) == [128_000, 256_000, 4, 4]
    # gradients of the copy 256,000, of the logarithms 128,000, of the logits 128,000
    assert sizes(seen, phase="backward") == [256_000, 128_000, 128_000]
