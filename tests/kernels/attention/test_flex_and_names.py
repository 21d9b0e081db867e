"""flex attention, xformers, SageAttention and axolotl's packed SDPA, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.attention_probe import A100, H100, T4, make_heads, probe, refused

from axmem_trace.errors import ConfigError

RTX5090 = (12, 0)


def _named(name, query, key, value, mask=None, **kwargs):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module = SimpleNamespace(training=True, num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True)
    return ALL_ATTENTION_FUNCTIONS[name](module, query, key, value, mask, **kwargs)[0]


def _grouped():
    """(B, H, S, D) with 32 query heads and 8 key heads, in the layout of models: (B, S, H, D) in memory."""
    return tuple(make_heads(1, 1024, heads, 128).transpose(1, 2) for heads in (32, 8, 8))


# out 1024*32*128*2, the same for all
OUT = 8_388_608
KEYS = 2_097_152  # 1024*8*128*2
ROWS = 131_072  # 32*1024*4


def test_flex_keeps_one_logsumexp_and_sums_grouped_keys_in_the_kernel():
    heads = _grouped()
    seen = probe(lambda: _named("flex_attention", *heads), attention="flex_attention")
    assert seen.kept == [OUT, ROWS]
    # out and logsumexp, and after the kernel (which also had max_scores) the logsumexp in base e and its bf16 copy
    assert seen.forward_peak == OUT + 2 * ROWS + ROWS // 2
    # dq, dk, dv and three fp32 rows: delta, the gradient of the logsumexp, the same in base 2
    assert seen.backward_peak == OUT + 2 * KEYS + 3 * ROWS


def test_block_mask_is_eight_small_tensors():
    from transformers import masking_utils

    def make():
        block_mask = masking_utils.create_block_mask(lambda b, h, q, k: q >= k, 2, None, 1000, 1000, device="meta")
        return torch.zeros(1, device="meta") + block_mask.kv_indices.shape[-1], block_mask

    seen = probe(lambda: make()[0], attention="flex_attention")
    # 1000 tokens are 8 blocks of 128: counts 2*8*4 = 64 four times, indices 2*8*8*4 = 512 four times, and two floats
    assert seen.forward_peak <= 4 * 64 + 4 * 512 + 8
    assert seen.forward_peak >= 4 * 64 + 4 * 512


def test_flex_refuses_tiny_heads():
    heads = [make_heads(1, 4, 64, 8) for _ in range(3)]
    seen = probe(lambda: _named("flex_attention", *heads), attention="flex_attention")
    assert "flex attention needs a head size of at least 16; this model's is 8" in refused(seen.notes)


@pytest.mark.parametrize("capability", [A100, H100, RTX5090])
def test_xformers_repeats_grouped_keys_for_flash2_without_rng_state(capability):
    """xformers 0.0.35 contains no FlashAttention-3."""
    heads = _grouped()
    seen = probe(lambda: _named("xformers", *heads), capability=capability, attention="xformers")
    # key and value repeated to 32 heads are kept with out and the logsumexp
    assert seen.kept == [OUT, OUT, OUT, ROWS]
    # dq, dk, dv of 32 heads each, softmax_d, dq_accum 1024*32*128*4 = 16,777,216, zeros for the logsumexp's gradient
    assert seen.backward_peak == 3 * OUT + 2 * ROWS + 16_777_216


@pytest.mark.parametrize(("shape", "capability"), [((1, 512, 4, 512), A100), ((1, 2048, 8, 64), T4)])
def test_xformers_falls_back_to_cutlass(shape, capability):
    heads = [make_heads(*shape, dtype=torch.float16).transpose(1, 2) for _ in range(3)]
    seen = probe(lambda: _named("xformers", *heads), capability=capability, attention="xformers")
    # large heads: out 512*4*512*2 = 2,097,152, lse 4*512*4 = 8,192, out in fp32 while it runs;
    # before Ampere: out 2048*8*64*2 = 2,097,152, lse 8*2048*4 = 65,536
    assert seen.forward_peak == 2_097_152 + (8_192 + 4_194_304 if capability == A100 else 65_536)


def test_xformers_with_a_window_makes_one_row_of_all():
    heads = [make_heads(3, 200, 4, 64).transpose(1, 2) for _ in range(3)]
    seen = probe(lambda: _named("xformers", *heads, sliding_window=100), attention="xformers")
    # 600 queries round up to 640 (3 rows of 200 would to 768): softmax_d 4*640*4 = 10,240, dq_accum 640*4*64*4 =
    # 655,360; dq, dk, dv 600*4*64*2 = 307,200 each; zeros for the logsumexp's gradient 4*600*4 = 9,600
    assert seen.backward_peak == 3 * 307_200 + 10_240 + 655_360 + 9_600


def test_xformers_has_no_kernel_for_large_heads_on_blackwell():
    heads = [make_heads(1, 4, 64, 512) for _ in range(3)]
    seen = probe(lambda: _named("xformers", *heads), capability=RTX5090, attention="xformers")
    assert "xformers has no kernel for head size 512" in refused(seen.notes)


def test_xformers_cannot_view_values_of_another_size():
    heads = make_heads(1, 4, 64, 96), make_heads(1, 4, 64, 96), make_heads(1, 4, 64, 64)
    with pytest.raises(
        ConfigError, match="needs values with the query's head size, 96; this model's value head size is 64"
    ):
        probe(lambda: _named("xformers", *heads), attention="xformers")


def test_sage_keeps_nothing_and_has_no_backward():
    heads = _grouped()
    seen = probe(lambda: _named("sage", *heads), capability=A100, attention="sage")
    assert seen.kept == [OUT]  # the output itself: there is no graph
    assert seen.gradients == []
    assert "no backward kernel" in seen.notes.of("attn_implementation")[0].text


def test_sage_refuses_large_heads():
    heads = [make_heads(1, 4, 64, 256) for _ in range(3)]
    seen = probe(lambda: _named("sage", *heads), attention="sage")
    assert "SageAttention supports head sizes of at most 128; this model's is 256" in refused(seen.notes)
