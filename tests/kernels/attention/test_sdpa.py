"""`scaled_dot_product_attention`: the kernel that CUDA chooses, and its bytes by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.attention_probe import A100, A6000, H100, L40S, T4, make_heads, probe

from axmem_trace.kernels.attention.efficient_sizes import backward_tile, backward_workspace, key_splits
from axmem_trace.kernels.attention.sdpa_choice import SdpaCall, choose_backend, priority_order
from axmem_trace.kernels.attention.sdpa_math import math_attention

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
B200, RTX5090 = (10, 0), (12, 0)


def _call(head_dim=128, *, heads=32, kv_heads=32, tokens=1024, dtype=BF16, value_dim=0, **changes):
    return SdpaCall(
        query=(2, heads, tokens, head_dim),
        key=(2, kv_heads, tokens, head_dim),
        value=(2, kv_heads, tokens, value_dim or head_dim),
        dtypes=(dtype,) * 3,
        **changes,
    )


MASK = {"mask": (2, 1, 1024, 1024)}


@pytest.mark.parametrize(
    ("call", "capability", "backend"),
    [
        (_call(is_causal=True), A100, "flash"),
        (_call(is_causal=True), H100, "cudnn"),
        (_call(is_causal=True), B200, "cudnn"),
        (_call(is_causal=True), RTX5090, "flash"),
        (_call(**MASK), A100, "efficient"),
        (_call(**MASK), H100, "cudnn"),
        (_call(mask=(1024,)), H100, "efficient"),
        (_call(**MASK, mask_requires_grad=True), H100, "efficient"),
        (_call(kv_heads=8, enable_gqa=True), A100, "flash"),
        (_call(kv_heads=8, enable_gqa=True, **MASK), A100, "math"),
        (_call(kv_heads=8, enable_gqa=True, **MASK), H100, "cudnn"),
        (_call(kv_heads=8), A100, "math"),
        (_call(dtype=FP32), A100, "efficient"),
        (_call(dtype=FP32), H100, "efficient"),
        (_call(dtype=FP16), T4, "efficient"),
        (_call(dtype=BF16), T4, "math"),
        (_call(256), A100, "flash"),
        (_call(256), H100, "cudnn"),
        (_call(256), B200, "flash"),
        (_call(512), H100, "efficient"),
        (_call(192, value_dim=128), A100, "efficient"),
        (_call(192, value_dim=128), H100, "cudnn"),
        (_call(192, value_dim=128), B200, "cudnn"),
        (_call(100), A100, "flash"),  # padded to 104
        (_call(100), H100, "flash"),
        (_call(100, **MASK), A100, "math"),
        (_call(224, requires_grad=True), L40S, "efficient"),
        (_call(224, requires_grad=False), L40S, "flash"),
        (_call(256, requires_grad=True), A6000, "flash"),
        (_call(256, requires_grad=True, dropout=0.1), A6000, "efficient"),
        (_call(contiguous_heads=False), A100, "math"),
        (_call(dropout=0.125), H100, "cudnn"),
        (_call(dropout=0.1), H100, "flash"),  # cuDNN draws in units of 1/16
        (_call(dropout=0.1, **MASK), H100, "efficient"),
        (_call(offsets=(0, 100, 0), **MASK), A100, "math"),  # offset of 100 elements: not a multiple of 8
        (_call(offsets=(0, 100, 0), **MASK, dtype=FP32), A100, "efficient"),  # but a multiple of 4
        (_call(offsets=(0, 100, 0), **MASK, dtype=FP16), T4, "efficient"),
        (_call(99, dtype=FP32, **MASK), T4, "efficient"),
        (_call(99, dtype=FP32, **MASK), A100, "math"),
        (_call(heads=70_000, kv_heads=70_000), H100, "flash"),
        (_call(dtype=torch.float64), A100, "math"),
    ],
)
def test_the_kernel_that_cuda_chooses(call, capability, backend):
    assert choose_backend(call, capability).backend == backend


def test_cudnn_is_first_only_on_data_centre_hopper_and_blackwell():
    first = {capability: priority_order(capability)[0] for capability in (T4, A100, A6000, L40S, H100, B200, RTX5090)}
    assert [capability for capability, backend in first.items() if backend == "cudnn"] == [H100, B200]


def test_each_refusal_is_reported():
    refused = choose_backend(_call(kv_heads=8, enable_gqa=True, **MASK), A100).refused
    assert refused == {"flash": "there is a mask", "efficient": "query, key and value differ in number of heads"}


def test_a_backend_disabled_by_the_user_is_not_used():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        assert choose_backend(_call(is_causal=True), A100).refused["flash"] == "it is disabled"


def test_flash_keeps_output_logsumexp_and_seeds():
    query, key, value = make_heads(1, 32, 1024, 128), make_heads(1, 8, 1024, 128), make_heads(1, 8, 1024, 128)
    seen = probe(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))
    # out 32*1024*128*2 = 8,388,608; logsumexp 32*1024*4 = 131,072; rng state 2*8, unused offset 8
    assert seen.kept == [8_388_608, 131_072, 16, 8]
    # as flash-attn's own mha_bwd: dq 8,388,608; dk, dv 2,097,152 each; softmax_d 131,072; dq_accum 16,777,216;
    # dk, dv per query head 8,388,608 each. Here heads are (B, H, S, D) in memory, and the output has the same layout.
    # The kernel needs (B, S, H, D), so the output and its gradient are copied, 8,388,608 each
    expected = 8_388_608 + 2 * 2_097_152 + 131_072 + 16_777_216 + 2 * 8_388_608
    assert seen.backward_peak == expected + 2 * 8_388_608
    query, key, value = (make_heads(1, 1024, each, 128).transpose(1, 2) for each in (32, 8, 8))
    seen = probe(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))
    assert seen.backward_peak == expected
    assert seen.notes.of("attention.sdpa.flash")


def test_every_masked_call_keeps_its_own_additive_mask():
    heads = [make_heads(2, 16, 512, 64) for _ in range(3)]
    mask = make_heads(2, 1, 512, 512, dtype=torch.bool, trains=False)
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, attn_mask=mask))
    # out 2*16*512*64*2 = 2,097,152; the mask in bf16 2*512*512*2 = 1,048,576; logsumexp 2*16*512*4 = 65,536
    # (the seeds of this kernel are on the CPU)
    assert [nbytes for nbytes in seen.kept if nbytes > 8] == [2_097_152, 1_048_576, 65_536]
    # dq, dk, dv 3 * 2,097,152; delta 2*16*512*4 = 65,536; workspace of 64x64 tiles: 32 * 8 blocks * 1 column
    # * (16 + 64*64*4) = 32 * 8 * 16,400 = 4,198,400
    assert seen.backward_peak == 3 * 2_097_152 + 65_536 + 4_198_400


def test_odd_lengths_pad_the_mask_and_the_logsumexp():
    heads = [make_heads(1, 16, 500, 64) for _ in range(3)]
    mask = make_heads(1, 1, 500, 500, dtype=BF16, trains=False)
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, attn_mask=mask))
    # rows of 500 elements pad by 8 - 500 % 8 = 4: 500*504*2 = 504,000; out 16*500*64*2 = 1,024,000;
    # logsumexp for 512 queries: 16*512*4 = 32,768
    assert [nbytes for nbytes in seen.kept if nbytes > 8] == [1_024_000, 504_000, 32_768]


def test_heads_over_128_need_an_fp32_output_and_key_accumulators():
    heads = [make_heads(1, 8, 1024, 512) for _ in range(3)]
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, is_causal=True))
    # out 8*1024*512*2 = 8,388,608 and its fp32 accumulator 16,777,216; logsumexp 8*1024*4 = 32,768
    assert seen.forward_peak == 8_388_608 + 16_777_216 + 32_768 + 2 * 8
    # tile 128x64: dq 8 blocks * 8 columns * (16 + 32,768) = 2,098,176 B per head; dk and dv: ceil(1024/64) = 16
    # splits, at most 200 // 8 = 25: 16 * 64 * (512 + 512) * 4 = 4,194,304 B per head; 8 heads; delta 32,768
    assert seen.backward_peak == 3 * 8_388_608 + 32_768 + 8 * (2_098_176 + 4_194_304)


def test_fp32_backward_allocates_a_product_before_its_workspace():
    heads = [make_heads(1, 8, 512, 64, dtype=FP32) for _ in range(3)]
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, is_causal=True))
    # dq, dk, dv 8*512*64*4 = 1,048,576 each. Before the kernel: the product grad_out * out 1,048,576, its sum over heads
    # 8*512*4 = 16,384 and that in another layout, 16,384. For the kernel: the latter, and a workspace of 8 heads * 8 blocks
    # * (16 + 16,384) = 1,049,600: less
    assert seen.backward_peak == 3 * 1_048_576 + max(1_048_576 + 2 * 16_384, 16_384 + 1_049_600)
    assert seen.backward_peak == 4 * 1_048_576 + 2 * 16_384


def test_latent_heads_with_values_of_128_need_an_fp32_output():
    query, key = make_heads(1, 8, 512, 192), make_heads(1, 8, 512, 192)
    value = make_heads(1, 8, 512, 128)
    seen = probe(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True))
    # out 8*512*128*2 = 1,048,576, in fp32 2,097,152 while it runs: the kernel that keeps it in registers takes neither
    # keys nor values over 128; logsumexp 8*512*4 = 16,384
    assert [nbytes for nbytes in seen.kept if nbytes > 8] == [1_048_576, 16_384]
    assert seen.forward_peak == 1_048_576 + 2_097_152 + 16_384 + 2 * 8
    # dq, dk 8*512*192*2 = 1,572,864 each, dv 1,048,576; delta 16,384; tiles of 128x64: 4 blocks * 3 columns * 32,784 =
    # 393,408 a head; dk and dv 512/64 = 8 splits (at most 200 // 8) * 64 * (256 + 128) * 4 = 786,432 a head
    assert seen.backward_peak == 2 * 1_572_864 + 1_048_576 + 16_384 + 8 * (393_408 + 786_432)


def test_small_cards_use_smaller_tiles():
    # 99 KiB of shared memory: 64x64 with dk, dv outside of registers; 4*32 = 128 heads: 200 // 128 = 1 split
    tile = backward_tile(128, half=True, capability=RTX5090)
    assert (tile.queries, tile.keys, tile.accumulates_keys) == (64, 64, True)
    assert key_splits(tile, batch=4, heads=32, keys=1024) == 1
    # per head: 16 blocks * 2 columns * 16,400 = 524,800, and 64 * (128 + 128) * 4 = 65,536
    sizes = {"batch": 4, "heads": 32, "queries": 1024, "keys": 1024, "head_dim": 128, "value_dim": 128}
    assert backward_workspace(tile, **sizes) == 128 * (524_800 + 65_536)
    # A100: 128x128, all in registers but dq: 8 blocks * 1 column * (16 + 65,536)
    assert backward_workspace(backward_tile(128, half=True, capability=A100), **sizes) == 128 * 8 * 65_552


@pytest.mark.parametrize(
    ("head_dim", "half", "capability", "dropout", "tile"),
    [
        (256, True, L40S, False, (128, 64)),  # 60,928 bytes of 101,376
        (256, False, L40S, False, (64, 64)),  # not 121,344
        (256, False, A100, False, (128, 64)),
        (96, True, A6000, False, (128, 64)),  # 91,648
        (96, True, A6000, True, (64, 64)),  # it has no dropout; 152,064 for 128x128 are too many
        (96, True, A100, True, (128, 128)),
        (96, True, RTX5090, False, (64, 64)),
        (128, True, T4, False, (128, 64)),  # 54,784 of 65,536
        (128, False, T4, False, (64, 64)),  # 7.5 has no other tile in fp32
        (64, True, H100, False, (64, 64)),
    ],
)
def test_the_tile_that_fits_the_card(head_dim, half, capability, dropout, tile):
    found = backward_tile(head_dim, half=half, capability=capability, dropout=dropout)
    assert (found.queries, found.keys) == tile


def test_cudnn_on_hopper():
    query, key, value = make_heads(1, 32, 1024, 128), make_heads(1, 8, 1024, 128), make_heads(1, 8, 1024, 128)
    run = lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)  # noqa: E731
    seen = probe(run, capability=H100)
    # out 8,388,608; logsumexp (B, H, S, 1) 131,072; seed and offset 8 each
    assert seen.kept == [8_388_608, 131_072, 8, 8]
    # dq 8,388,608; dk, dv 2,097,152 each; dq in fp32 16,777,216 and softmax_sum 131,072 in one workspace
    assert seen.backward_peak == 8_388_608 + 2 * 2_097_152 + 16_777_216 + 131_072
    # what it may need in addition, dk and dv of 32 heads: 2 * 1024*32*128*2
    assert seen.notes.of("attention.sdpa.cudnn.grouped")[0].bytes == 16_777_216


def test_math_stores_scores_in_fp32():
    heads = [make_heads(1, 4, 64, 20) for _ in range(3)]
    mask = make_heads(1, 1, 64, 64, dtype=torch.bool, trains=False)
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, attn_mask=mask))
    # softmax 4*64*64*4 = 65,536; q and k scaled, v in fp32: 4*64*20*4 = 20,480 each; out 4*64*20*2 = 10,240
    assert [nbytes for nbytes in seen.kept if nbytes >= 10_240] == [65_536, 20_480, 20_480, 20_480, 10_240]
    assert "not a multiple of 8" in seen.notes.of("attention.sdpa.math")[0].text


def test_math_dropout_has_a_mask_of_bytes():
    heads = [make_heads(1, 4, 64, 20) for _ in range(3)]
    mask = make_heads(1, 1, 64, 64, dtype=torch.bool, trains=False)
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=0.1))
    # as above; in addition the softmax after dropout, 65,536, and a mask with a byte for each element: 4*64*64 = 16,384
    assert [nbytes for nbytes in seen.kept if nbytes >= 10_240] == [65_536] * 2 + [20_480] * 3 + [16_384, 10_240]


def test_our_math_path_equals_torchs():
    query, key, value = make_heads(1, 8, 64, 32), make_heads(1, 2, 64, 32), make_heads(1, 2, 64, 32)
    options = {"attn_mask": None, "dropout_p": 1e-9, "is_causal": True, "scale": -0.3, "enable_gqa": True}

    def theirs() -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, None, 0.0, True, None, scale=-0.3, enable_gqa=True
        )[0]

    ours = probe(lambda: math_attention(query, key, value, **options)).kept
    # only our path has dropout's result and its mask of 8*64*64 bytes
    assert sorted(ours) == sorted([*probe(theirs).kept, 8 * 64 * 64 * 4, 8 * 64 * 64])


def test_autocast_casts_before_the_choice():
    heads = [make_heads(1, 16, 512, 64, dtype=FP32) for _ in range(3)]
    seen = probe(lambda: F.scaled_dot_product_attention(*heads, is_causal=True), autocast=True)
    # bf16 copies of q, k, v are kept with out: 16*512*64*2 = 1,048,576 each; logsumexp 16*512*4 = 32,768
    assert seen.kept == [1_048_576] * 4 + [32_768, 16, 8]
