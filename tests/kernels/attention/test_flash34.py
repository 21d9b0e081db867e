"""FlashAttention-3 and -4, compared with arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from support.attention_probe import A100, H100, make_heads, probe, refused

from axmem_trace.errors import ConfigError
from axmem_trace.kernels.attention.hopper_sizes import flash3_tile, flash4_tile

B200 = (10, 0)


def _functions(implementation):
    from transformers import modeling_flash_attention_utils as flash_utils

    (fixed, varlen, *_), _ = flash_utils.lazy_import_flash_attention(implementation)
    return fixed, varlen


def _fixed(*args, release=3, **kwargs):
    return _functions(f"flash_attention_{release}")[0](*args, **kwargs)


def _varlen(*args, release=3, **kwargs):
    return _functions(f"flash_attention_{release}")[1](*args, **kwargs)


def test_flash3_sums_grouped_keys_in_fp32_per_key_head():
    query, key, value = make_heads(1, 1000, 32, 128), make_heads(1, 1000, 8, 128), make_heads(1, 1000, 8, 128)
    seen = probe(lambda: _fixed(query, key, value, causal=True), capability=H100, attention="flash_attention_3")
    # out 1000*32*128*2 = 8,192,000; lse 32*1000*4 = 128,000; no RNG state
    assert seen.kept == [8_192_000, 128_000]
    # tile 64x128: 1000 queries round up to 1024, 1000 keys to 1024: softmax_d and lse_log2 32*1024*4 = 131,072 each;
    # dq_accum 32*1024*128*4 = 16,777,216; dk_accum, dv_accum 8*1024*128*4 = 4,194,304 each;
    # dq_semaphore 16 tiles * 32 heads * 4 = 2,048; dq 8,192,000; dk, dv 1000*8*128*2 = 2,048,000 each
    scratch = 2 * 131_072 + 16_777_216 + 2 * 4_194_304 + 2_048
    assert seen.backward_peak == 8_192_000 + 2 * 2_048_000 + scratch


def test_flash3_varlen_has_a_spare_tile_per_sample():
    bounds = torch.empty(5, dtype=torch.int32, device="meta")
    query, key, value = make_heads(4096, 32, 64), make_heads(4096, 8, 64), make_heads(4096, 8, 64)
    seen = probe(
        lambda: _varlen(query, key, value, bounds, bounds, 1024, 1024, causal=True),
        capability=H100,
        attention="flash_attention_3",
    )
    # out 4096*32*64*2 = 16,777,216; lse 32*4096*4 = 524,288
    assert seen.kept == [16_777_216, 524_288]
    # tile 128x128: 4096 + 4*128 = 4608 rows and columns: 2 sums of 32*4608*4 = 589,824;
    # dq_accum 32*4608*64*4 = 37,748,736; dk_accum, dv_accum 8*4608*64*4 = 9,437,184 each;
    # semaphores 4 samples * 32 heads * 8 tiles * 4 = 4,096; dq 16,777,216; dk, dv 4096*8*64*2 = 4,194,304 each
    scratch = 2 * 589_824 + 37_748_736 + 2 * 9_437_184 + 4_096
    assert seen.backward_peak == 16_777_216 + 2 * 4_194_304 + scratch


def test_flash4_on_blackwell_rounds_keys_to_pairs_of_tiles():
    query, key, value = make_heads(1, 1152, 16, 128), make_heads(1, 1152, 4, 128), make_heads(1, 1152, 4, 128)
    seen = probe(
        lambda: _fixed(query, key, value, causal=True, release=4), capability=B200, attention="flash_attention_4"
    )
    # 1152 keys are 9 tiles of 128, 10 with two blocks a cluster: 1280 columns; 2 sums of 16*1152*4 = 73,728;
    # dq_accum 16*1152*128*4 = 9,437,184; dk_accum, dv_accum 4*1280*128*4 = 2,621,440 each
    scratch = 2 * 73_728 + 9_437_184 + 2 * 2_621_440
    # dq 1152*16*128*2 = 4,718,592; dk, dv 1,179,648 each
    assert seen.backward_peak == 4_718_592 + 2 * 1_179_648 + scratch


def test_flash4_heads_of_256_on_blackwell_accumulate_nothing():
    heads = [make_heads(1, 1024, 8, 256) for _ in range(3)]
    seen = probe(lambda: _fixed(*heads, causal=True, release=4), capability=B200, attention="flash_attention_4")
    # dq, dk, dv 1024*8*256*2 = 4,194,304 each and two sums of 8*1024*4 = 32,768
    assert seen.backward_peak == 3 * 4_194_304 + 2 * 32_768


def test_tiles_by_head_size_and_card():
    full, causal = {"causal": False, "local": False}, {"causal": True, "local": False}
    assert [flash3_tile(dim, dim, H100, **full).queries for dim in (64, 96, 128, 192, 256)] == [128, 64, 80, 64, 64]
    assert [flash3_tile(dim, dim, H100, **causal).keys for dim in (64, 96, 128, 192, 256)] == [128, 128, 128, 96, 80]
    assert flash3_tile(192, 128, A100, **causal).head_dim_rounded == 192
    assert [flash4_tile(dim, dim, H100, **causal).keys for dim in (128, 192, 256)] == [128, 96, 48]
    assert flash4_tile(80, 80, B200, **causal).head_dim_rounded == 96


def test_a_soft_cap_changes_flash3s_tile():
    """hopper/flash_api.cpp: `is_causal && softcap > 0.0 ? 96 : 128`, `softcap > 0.0 ? 64 : 80`."""
    whole, causal = {"causal": False, "local": False}, {"causal": True, "local": False}
    assert flash3_tile(64, 64, H100, **causal, softcap=True).queries == 96
    assert flash3_tile(64, 64, H100, causal=True, local=True, softcap=True).queries == 128  # a window: not `is_causal`
    assert flash3_tile(128, 128, H100, **whole, softcap=True).queries == 64
    heads = [make_heads(1, 1000, 4, 64) for _ in range(3)]
    seen = probe(lambda: _fixed(*heads, causal=True, softcap=30.0), capability=H100, attention="flash_attention_3")
    # 1000 queries are 11 tiles of 96, 1056: two sums of 4*1056*4 = 16,896, dq_accum 4*1056*64*4 = 1,081,344,
    # semaphores 11 * 4 * 4 = 176; dq, dk, dv 1000*4*64*2 = 512,000 each
    assert seen.backward_peak == 2 * 16_896 + 1_081_344 + 176 + 3 * 512_000


def test_flash4_on_consumer_blackwell_has_tiles_of_64():
    query, key, value = make_heads(1, 1000, 8, 80), make_heads(1, 1000, 2, 80), make_heads(1, 1000, 2, 80)
    seen = probe(
        lambda: _fixed(query, key, value, causal=True, release=4), capability=(12, 0), attention="flash_attention_4"
    )
    # 1024 rows, heads of 96: two sums of 8*1024*4 = 32,768, dq_accum 8*1024*96*4 = 3,145,728, dk_accum and dv_accum
    # 2*1024*96*4 = 786,432 each; dq 1000*8*80*2 = 1,280,000, dk, dv 320,000 each
    assert seen.backward_peak == 2 * 32_768 + 3_145_728 + 2 * 786_432 + 1_280_000 + 2 * 320_000


@pytest.mark.parametrize(
    ("release", "capability", "dims", "options", "message"),
    [
        (
            4,
            B200,
            (192, 192),
            {},
            "on Blackwell supports head sizes of at most 128, 192 with",
        ),
        (4, B200, (256, 256), {"softcap": 50.0}, "has no backward for head size 256 with a soft cap on Blackwell"),
        (4, (12, 0), (64, 64), {"learnable_sink": make_heads(4)}, "has no backward for attention sinks on this card"),
    ],
)
def test_heads_that_a_release_does_not_support(release, capability, dims, options, message):
    query, key, value = make_heads(1, 64, 4, dims[0]), make_heads(1, 64, 4, dims[0]), make_heads(1, 64, 4, dims[1])
    seen = probe(
        lambda: _fixed(query, key, value, release=release, **options),
        capability=capability,
        attention=f"flash_attention_{release}",
    )
    assert message in refused(seen.notes)


def test_latent_heads_on_hopper_are_not_padded():
    query, key, value = make_heads(1, 512, 4, 192), make_heads(1, 512, 4, 192), make_heads(1, 512, 4, 128)
    seen = probe(lambda: _fixed(query, key, value, causal=True), capability=H100, attention="flash_attention_3")
    # out has the values' size: 512*4*128*2 = 524,288; lse 4*512*4 = 8,192
    assert seen.kept == [524_288, 8_192]


def test_sinks_train():
    heads = [make_heads(1, 256, 8, 64) for _ in range(3)]
    sinks = make_heads(8)
    seen = probe(lambda: _fixed(*heads, causal=True, s_aux=sinks), capability=H100, attention="flash_attention_3")
    assert seen.gradients == [256 * 8 * 64 * 2] * 3 + [16]


@pytest.mark.parametrize(
    ("release", "capability", "message"),
    [
        (3, (10, 0), "FlashAttention-3 needs a GPU of generation Ampere to Hopper"),
        (4, (8, 0), "FlashAttention-4 needs a GPU of generation Hopper to Blackwell"),
    ],
)
def test_cards_that_a_release_does_not_support(release, capability, message):
    heads = [make_heads(1, 64, 4, 64) for _ in range(3)]
    seen = probe(lambda: _fixed(*heads, release=release), capability=capability, attention=f"flash_attention_{release}")
    assert message in refused(seen.notes)
    assert seen.forward_peak > 0


@pytest.mark.parametrize(("capability", "dims"), [(A100, (192, 128)), (H100, (128, 64))])
def test_values_of_another_size_are_an_error(capability, dims):
    heads = make_heads(1, 64, 4, dims[0]), make_heads(1, 64, 4, dims[0]), make_heads(1, 64, 4, dims[1])
    message = f"FlashAttention-3 does not support head size {dims[0]} with value head size {dims[1]}"
    with pytest.raises(ConfigError, match=message):
        probe(lambda: _fixed(*heads, release=3), capability=capability, attention="flash_attention_3")


def test_odd_heads_are_refused():
    heads = [make_heads(1, 64, 4, 100) for _ in range(3)]
    seen = probe(lambda: _fixed(*heads), capability=H100, attention="flash_attention_3")
    assert "supports head sizes that are multiples of 8; this model's is 100" in refused(seen.notes)
