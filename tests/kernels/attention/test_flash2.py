"""FlashAttention-2, compared with arithmetic by hand: the kept tensors, and the peak of backward."""

from __future__ import annotations

import pytest
import torch
from support.attention_probe import A100, T4, make_heads, probe, refused

from axmem_trace.kernels.attention.flash_sizes import num_splits


def _flash(*args, **kwargs):
    from transformers import modeling_flash_attention_utils as flash_utils

    (fixed, *_), _ = flash_utils.lazy_import_flash_attention("flash_attention_2")
    return fixed(*args, **kwargs)


def _varlen(*args, **kwargs):
    from transformers import modeling_flash_attention_utils as flash_utils

    (_, varlen, *_), _ = flash_utils.lazy_import_flash_attention("flash_attention_2")
    return varlen(*args, **kwargs)


def test_fixed_length_multi_head():
    query, key, value = (make_heads(2, 1000, 16, 128) for _ in range(3))
    seen = probe(lambda: _flash(query, key, value, causal=True), attention="flash_attention_2")
    # out 2*1000*16*128*2 = 8,192,000; softmax_lse 2*16*1000*4 = 128,000; rng_state 2*8 = 16
    assert seen.kept == [8_192_000, 128_000, 16]
    # dq, dk, dv 3 * 8,192,000; 1000 queries round up to 1024: softmax_d 2*16*1024*4 = 131,072;
    # dq_accum 2*1024*16*128*4 = 16,777,216
    assert seen.backward_peak == 3 * 8_192_000 + 131_072 + 16_777_216
    assert seen.gradients == [8_192_000] * 3


def test_grouped_queries_get_one_key_gradient_per_query_head():
    query, key, value = make_heads(1, 1024, 32, 128), make_heads(1, 1024, 8, 128), make_heads(1, 1024, 8, 128)
    seen = probe(lambda: _flash(query, key, value, causal=True), attention="flash_attention_2")
    # dq 1024*32*128*2 = 8,388,608; dk, dv 1024*8*128*2 = 2,097,152 each; softmax_d 32*1024*4 = 131,072;
    # dq_accum 1024*32*128*4 = 16,777,216; dk_expanded, dv_expanded as large as dq: 8,388,608 each
    assert seen.backward_peak == 8_388_608 + 2 * 2_097_152 + 131_072 + 16_777_216 + 2 * 8_388_608
    assert seen.gradients == [8_388_608, 2_097_152, 2_097_152]


def test_repeated_keys_and_values_are_kept():
    query, key, value = make_heads(1, 1024, 32, 128), make_heads(1, 1024, 8, 128), make_heads(1, 1024, 8, 128)
    seen = probe(lambda: _flash(query, key, value, causal=True), attention="flash_attention_2", repeats_kv=True)
    # k and v of 32 heads and the output, 1024*32*128*2 = 8,388,608 each; lse 32*1024*4 = 131,072
    assert seen.kept == [8_388_608] * 3 + [131_072, 16]
    # dq, and dk and dv of 32 heads; softmax_d 131,072; dq_accum 16,777,216; nothing to expand
    assert seen.backward_peak == 3 * 8_388_608 + 131_072 + 16_777_216
    assert seen.gradients == [8_388_608, 2_097_152, 2_097_152]


def test_odd_head_size_keeps_padded_copies():
    query, key, value = (make_heads(1, 512, 32, 100) for _ in range(3))
    seen = probe(lambda: _flash(query, key, value), attention="flash_attention_2")
    # 100 pads to 104: q, k, v and out 512*32*104*2 = 3,407,872 each; lse 32*512*4 = 65,536
    assert seen.kept == [3_407_872] * 4 + [65_536, 16]
    # padded dq, dk, dv and the padded gradient of out: 4 * 3,407,872; softmax_d 32*512*4 = 65,536;
    # dq_accum with heads rounded to 128: 512*32*128*4 = 8,388,608
    assert seen.backward_peak == 4 * 3_407_872 + 65_536 + 8_388_608


def test_varlen_has_128_spare_rows_per_sample():
    bounds = torch.empty(5, dtype=torch.int32, device="meta")
    query, key, value = make_heads(4096, 32, 128), make_heads(4096, 8, 128), make_heads(4096, 8, 128)
    seen = probe(lambda: _varlen(query, key, value, bounds, bounds, 2048, 2048), attention="flash_attention_2")
    # out 4096*32*128*2 = 33,554,432; softmax_lse without padding 32*4096*4 = 524,288
    assert seen.kept == [33_554_432, 524_288, 16]
    # rows 4096 + 128*4 = 4608: softmax_d 32*4608*4 = 589,824; dq_accum 4608*32*128*4 = 75,497,472;
    # dq 33,554,432; dk, dv 4096*8*128*2 = 8,388,608 each; both expanded 33,554,432 each
    expected = 33_554_432 + 2 * 8_388_608 + 589_824 + 75_497_472 + 2 * 33_554_432
    assert seen.backward_peak == expected


def test_nothing_is_kept_if_nothing_is_trained():
    query, key, value = (make_heads(1, 512, 16, 128, trains=False) for _ in range(3))
    seen = probe(lambda: _flash(query, key, value), attention="flash_attention_2")
    assert seen.kept == [512 * 16 * 128 * 2]  # the output itself


def test_deterministic_backward_has_a_dq_per_split():
    query, key, value = (make_heads(1, 512, 16, 64) for _ in range(3))
    seen = probe(lambda: _flash(query, key, value, deterministic=True), attention="flash_attention_2", num_sms=108)
    # splits = (108 + 16 - 1) // 16 = 7: dq_accum 7*512*16*64*4 = 14,680,064; dq, dk, dv 512*16*64*2 = 1,048,576 each;
    # softmax_d 16*512*4 = 32,768
    assert seen.backward_peak == 3 * 1_048_576 + 32_768 + 14_680_064


def test_few_queries_split_the_keys():
    # 1*8*ceil(512/64) = 64 blocks for 216 slots; 512 keys of head 64 are 2 blocks of 256; efficiencies 64/216 and
    # 128/216, so two splits
    assert num_splits(batch=1, heads=8, queries=512, keys=512, head_dim=64, num_sms=108) == 2
    # 0.8 * 216 = 172.8 slots are filled by 1*32*8 = 256 blocks
    assert num_splits(batch=1, heads=32, queries=512, keys=512, head_dim=64, num_sms=108) == 1
    query, key, value = (make_heads(1, 512, 8, 64) for _ in range(3))
    seen = probe(lambda: _flash(query, key, value), attention="flash_attention_2", num_sms=108)
    # out 512*8*64*2 = 524,288; lse 8*512*4 = 16,384; rng 16; lse_accum 2 * 16,384; out_accum 2*8*512*64*4 = 2,097,152
    assert seen.forward_peak == 524_288 + 16_384 + 16 + 32_768 + 2_097_152


@pytest.mark.parametrize(
    ("shape", "dtype", "capability", "message"),
    [
        ((1, 64, 4, 64), torch.float32, A100, "supports only fp16 and bf16"),
        ((1, 64, 4, 64), torch.float16, T4, "needs a GPU of generation Ampere or newer"),
    ],
)
def test_a_card_or_dtype_that_the_kernel_refuses_is_recorded_as_if_it_ran(shape, dtype, capability, message):
    heads = [make_heads(*shape, dtype=dtype) for _ in range(3)]
    seen = probe(lambda: _flash(*heads), capability=capability, attention="flash_attention_2")
    assert message in refused(seen.notes)
    # out 64*4*64 elements, logsumexp 4*64*4, and the state of the random numbers in 16 bytes
    assert seen.forward_peak == 64 * 4 * 64 * dtype.itemsize + 1024 + 16


def test_heads_that_the_kernel_does_not_support_are_refused():
    heads = [make_heads(1, 64, 4, 512, dtype=torch.bfloat16) for _ in range(3)]
    seen = probe(lambda: _flash(*heads), capability=A100, attention="flash_attention_2")
    assert "supports head sizes of at most 256; this model's is 512" in refused(seen.notes)


def test_a_soft_cap_excludes_dropout():
    heads = [make_heads(1, 64, 4, 64) for _ in range(3)]
    seen = probe(lambda: _flash(*heads, dropout_p=0.1, softcap=50.0), attention="flash_attention_2")
    assert "does not support dropout together with a soft cap" in refused(seen.notes)


def test_transformers_is_restored():
    from transformers import modeling_flash_attention_utils as flash_utils

    before = flash_utils._lazy_imports, flash_utils._flash_fn, flash_utils._loaded_implementation
    heads = [make_heads(1, 64, 4, 64) for _ in range(3)]
    probe(lambda: _flash(*heads), attention="flash_attention_2")
    assert (flash_utils._lazy_imports, flash_utils._flash_fn, flash_utils._loaded_implementation) == before
