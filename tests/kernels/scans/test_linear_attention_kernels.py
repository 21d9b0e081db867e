"""The functions of flash-linear-attention and RWKV: kept bytes and peaks, by hand.

fla-core 0.5.2's own host code gives the same numbers on meta, with kernels that do nothing.
"""

from __future__ import annotations

import pytest
import torch
from support.kernel_recording import gpu_recording
from support.scan_probe import leaf, leaf32, probe

from axmem_trace.kernels.scans.fla_blocks import Chunks, widest_tile
from axmem_trace.kernels.scans.gated_delta import chunk_gated_delta_rule
from axmem_trace.kernels.scans.kda import chunk_kda
from axmem_trace.kernels.scans.rwkv import rwkv_linear_attention
from axmem_trace.kernels.scans.short_conv import causal_conv1d
from axmem_trace.tracing.context import KernelContext


@pytest.fixture
def context() -> KernelContext:
    return gpu_recording().context


# 1 row, 128 tokens (2 chunks), 2 heads of 32 for query and key, 4 heads of 64 for values
KEYS, VALUES, TRIANGLE, PER_HEAD = 128 * 2 * 32 * 2, 128 * 4 * 64 * 2, 128 * 4 * 64 * 2, 128 * 4 * 4
NORMS = 128 * 2 * 4
WIDE_KEYS, STATES = 128 * 4 * 32 * 2, 2 * 4 * 32 * 64 * 2


def _inputs() -> tuple[torch.Tensor, ...]:
    return leaf(1, 128, 2, 32), leaf(1, 128, 2, 32), leaf(1, 128, 4, 64)


def test_the_gated_delta_rule_keeps_normed_heads_and_triangles(context: KernelContext) -> None:
    heads, g, beta = _inputs(), leaf32(1, 128, 4), leaf(1, 128, 4)
    found = probe(lambda: chunk_gated_delta_rule(*heads, g, beta, use_qk_l2norm_in_kernel=True, context=context)[0])
    # output and triangles; query and key normed; the gate's sums; a norm per query and per key
    assert found.kept == [VALUES, TRIANGLE, KEYS, KEYS, PER_HEAD, NORMS, NORMS]
    # in addition w, u, the states and the new values while it runs
    assert found.forward_peak == sum(found.kept) + WIDE_KEYS + VALUES + STATES + VALUES


def test_the_gated_delta_rule_recomputes_everything_in_backward(context: KernelContext) -> None:
    heads, g, beta = _inputs(), leaf32(1, 128, 4), leaf(1, 128, 4)
    found = probe(lambda: chunk_gated_delta_rule(*heads, g, beta, context=context)[0])
    again = WIDE_KEYS + VALUES + STATES + VALUES  # w, u, states, new values
    state_gradients = STATES + VALUES  # and the values' gradients
    # gradients of query and key (summed over each pair of value heads), of w, and of the gate: the last of them
    first = 2 * KEYS + WIDE_KEYS + PER_HEAD
    # then v's gradient, the gate's second part, beta's, and the key's second part while it is summed over the heads
    second = VALUES + PER_HEAD + 128 * 4 * 2 + WIDE_KEYS + KEYS
    assert found.backward_peak == again + state_gradients + first + second


def test_heads_that_are_slices_are_copied_first(context: KernelContext) -> None:
    wide, g, beta = leaf(1, 128, 4, 64), leaf32(1, 128, 4), leaf(1, 128, 4)
    heads = leaf(1, 128, 2, 32), leaf(1, 128, 2, 32), leaf(1, 128, 4, 128)[..., 64:]
    found = probe(lambda: chunk_gated_delta_rule(*heads, g, beta, context=context)[0])
    dense = probe(lambda: chunk_gated_delta_rule(*heads[:2], wide, g, beta, context=context)[0])
    assert sum(found.kept) - sum(dense.kept) == VALUES


def test_kimi_delta_attention_keeps_two_triangles_and_a_gate_per_channel(context: KernelContext) -> None:
    heads, g, beta = _inputs(), leaf32(1, 128, 4, 32), leaf(1, 128, 4)
    found = probe(lambda: chunk_kda(*heads, g, beta, use_qk_l2norm_in_kernel=True, context=context)[0])
    gate = 128 * 4 * 32 * 4
    assert found.kept == sorted([VALUES, TRIANGLE, TRIANGLE, gate, KEYS, KEYS, NORMS, NORMS], reverse=True)
    # in addition w, gated keys and u, the states and the new values while it runs
    assert found.forward_peak == sum(found.kept) + 2 * WIDE_KEYS + VALUES + STATES + VALUES


def test_the_short_convolution_sums_the_weight_once_per_chunk(context: KernelContext) -> None:
    x, weight = leaf(2, 128, 16), leaf(16, 4)
    found = probe(lambda: causal_conv1d(x, weight, activation="silu", context=context))
    wide = 2 * 128 * 16 * 2
    assert found.kept == [wide]  # the output
    # the convolution again, dx, an fp32 weight for each of 2 x 2 chunks, their fp32 sum and its bf16 cast
    assert found.backward_peak == wide + wide + 4 * 16 * 4 * 4 + 16 * 4 * 4 + 16 * 4 * 2


def test_each_packed_sample_begins_a_chunk(context: KernelContext) -> None:
    tokens = leaf(1, 128, 4)
    assert Chunks.of(context, tokens, None).count == 2
    assert Chunks.of(context, tokens, torch.tensor([0, 70, 128])).count == 3  # 70 tokens take two chunks, 58 one
    assert Chunks.of(context, tokens, torch.tensor([0, 64, 128])).count == 2
    unknown = torch.empty(3, dtype=torch.int32, device="meta")
    assert Chunks.of(context, tokens, unknown).count == 3  # at most one more per further sample


@pytest.mark.parametrize(("capability", "tile"), [((9, 0), 128), ((8, 0), 64), ((8, 9), 64), ((7, 5), 32)])
def test_tiles_depend_on_the_cards_shared_memory(capability: tuple[int, int], tile: int) -> None:
    assert widest_tile(gpu_recording(compute_capability=capability).context) == tile


def test_rwkv_keeps_key_value_and_output() -> None:
    decay, first, key, value = leaf(32), leaf(32), leaf(1, 64, 32), leaf(1, 64, 32)
    found = probe(lambda: rwkv_linear_attention(decay, first, key, value)[0])
    assert found.kept == [64 * 32 * 2, 32 * 4]  # the output; minus the exponential of the decay, in fp32
    assert found.backward_peak == 32 * 2 + 32 * 2 + 2 * 64 * 32 * 2  # decay, first, key, value
