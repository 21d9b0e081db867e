"""The functions of mamba-ssm and causal-conv1d: kept bytes and peaks, by hand.

The packages' own host code (mamba-ssm 2.3.2, causal-conv1d 1.7.0) gives the same numbers on meta, with kernels that do
nothing.
"""

from __future__ import annotations

import torch
from support.scan_probe import leaf, leaf32, probe

from axmem_trace.kernels.scans.causal_conv import causal_conv1d_fn
from axmem_trace.kernels.scans.mamba_inner import mamba_inner_fn
from axmem_trace.kernels.scans.selective_scan import selective_scan_fn
from axmem_trace.kernels.scans.ssd import mamba_chunk_scan_combined
from axmem_trace.kernels.scans.ssd_split import mamba_split_conv1d_scan_combined


def test_the_convolution_keeps_no_copy_of_its_input() -> None:
    x, weight, bias = leaf(1, 16, 100), leaf(16, 4), leaf(16)
    found = probe(lambda: causal_conv1d_fn(x, weight, bias, activation="silu"))
    assert found.kept == [3200]  # the output: 16 x 100 x 2 bytes
    # dx 3200; the bias's fp32 sum 64; the weight's fp32 sum 256 while its bf16 cast (128) is made
    assert found.backward_peak == 3200 + 64 + 256 + 128


def test_the_convolution_copies_an_input_without_a_dense_dimension() -> None:
    x, weight = leaf(1, 16, 200), leaf(16, 4)
    found = probe(lambda: causal_conv1d_fn(x[:, :, ::2].expand(2, 16, 100), weight))
    assert found.kept == [6400, 6400]  # the contiguous copy (2 x 16 x 100 x 2) and the output


def test_the_selective_scan_keeps_a_state_per_2048_tokens() -> None:
    # batch 2, 24 channels, 4096 tokens, 8 states: [batch, channels, length] in bf16 has 2 x 24 x 4096 x 2 bytes
    wide, narrow = 393216, 2 * 8 * 4096 * 2
    u, delta, z = leaf(2, 24, 4096), leaf(2, 24, 4096), leaf(2, 24, 4096)
    A, B, C, D, bias = leaf32(24, 8), leaf(2, 8, 4096), leaf(2, 8, 4096), leaf32(24), leaf32(24)
    found = probe(lambda: selective_scan_fn(u, delta, A, B, C, D, z, bias, delta_softplus=True))
    states = 2 * 24 * 2 * 16 * 4  # 2 chunks of 2048, two fp32 values per state
    assert found.kept == [wide, wide, states]  # the gated output, the scan's own output, the states
    # du, ddelta and dz; dA; dB and dC in fp32, and their bf16 casts; dD and the bias's gradient
    assert found.backward_peak == 3 * wide + 768 + 2 * 2 * narrow + 2 * narrow + 2 * 96


def test_the_selective_scan_copies_inputs_whose_last_dimension_is_strided() -> None:
    u, delta = leaf(1, 512, 24), leaf(1, 24, 512)
    A, B, C = leaf32(24, 8), leaf(1, 512, 8), leaf(1, 512, 8)
    found = probe(lambda: selective_scan_fn(u.transpose(1, 2), delta, A, B.transpose(1, 2), C.transpose(1, 2)))
    wide, narrow = 24 * 512 * 2, 8 * 512 * 2
    assert found.kept == sorted([wide, wide, narrow, narrow, 24 * 16 * 4], reverse=True)  # u, out, B, C, states


def test_the_fused_mamba_layer_recomputes_convolution_and_time_steps() -> None:
    # 1 row, 24 channels, 512 tokens, 8 states, rank 4
    xz, conv, conv_bias = leaf(1, 48, 512), leaf(24, 1, 4), leaf(24)
    x_proj, dt_proj, out_proj = leaf(20, 24), leaf(24, 4), leaf(16, 24)
    A, D, bias = leaf32(24, 8), leaf32(24), leaf32(24)
    found = probe(
        lambda: _given(mamba_inner_fn(xz, conv, conv_bias, x_proj, dt_proj, out_proj, None, A, D=D, delta_bias=bias))
    )
    out, mixed, state_inputs, states, projected = 24 * 512 * 2, 20 * 512 * 2, 8 * 512 * 2, 24 * 16 * 4, 16 * 512 * 2
    assert found.kept == sorted([out, mixed, state_inputs, state_inputs, states, projected], reverse=True)


def test_quantised_projections_use_the_separate_kernels() -> None:
    packed = torch.empty(192, 1, dtype=torch.uint8, device="meta")
    weights = leaf(24, 1, 4), leaf(24), leaf(20, 24), leaf(24, 4)
    assert mamba_inner_fn(leaf(1, 48, 8), *weights, packed, None, leaf32(24, 8)) is None
    split = mamba_split_conv1d_scan_combined(
        leaf(1, 8, 196),
        leaf(128, 4),
        leaf(128),
        leaf(4),
        leaf32(4),
        leaf(4),
        64,
        outproj_weight=packed,
        headdim=16,
        num_sms=108,
    )
    assert split is None


def _scan_inputs() -> tuple[torch.Tensor, ...]:
    """1 row, 256 tokens, 4 heads of 16, 1 group, 32 states."""
    return leaf(1, 256, 4, 16), leaf(1, 256, 4), leaf32(4), leaf(1, 256, 1, 32), leaf(1, 256, 1, 32)


def test_the_chunk_scan_keeps_the_decay_but_no_states() -> None:
    inputs, D = _scan_inputs(), leaf(4)
    found = probe(lambda: _tensor(mamba_chunk_scan_combined(*inputs, 64, D, num_sms=108)))
    out, per_token = 256 * 64 * 2, 4 * 4 * 64 * 4  # 4 chunks of 64: one fp32 value per head and token
    assert found.kept == [out, per_token]
    passed, final, scores = 4 * 4 * 16 * 32 * 2, 4 * 16 * 32 * 4, 4 * 64 * 64 * 4
    assert found.forward_peak == 2 * per_token + passed + final + scores + out


def test_the_chunk_scan_recomputes_its_states_in_backward() -> None:
    inputs, D = _scan_inputs(), leaf(4)
    found = probe(lambda: _tensor(mamba_chunk_scan_combined(*inputs, 64, D, num_sms=108)))
    # 16 programs for 108 multiprocessors: one head each, so 4 partial sums per group. The peak is where the gradient of
    # the scores is summed: 4 chunks x 4 x 64 x 64 x 4 bytes, and their sum.
    score_parts, scores = 4 * 4 * 64 * 64 * 4, 4 * 64 * 64 * 4
    again = 256 * 4 * 2 + 2 * 4096 + scores + 8192  # dt's copy, decay and steps, scores, final states
    states = 2 * 4 * 4 * 16 * 32 * 2 + 4 * 4 * 4  # the states' gradients and their bf16 copies; the decay's per chunk
    gradients = 2 * 256 * 32 * 2 + 256 * 4 * 2 + 256 * 64 * 2 + 4 * 2  # B, C, dt, x, D
    sums = 2 * 256 * 32 * 4 + 3 * 4096  # B's and C's in fp32; the steps' and two of the decay's
    assert found.backward_peak == again + states + gradients + sums + score_parts + scores


def test_few_multiprocessors_need_fewer_partial_sums() -> None:
    inputs = _scan_inputs()
    many = probe(lambda: _tensor(mamba_chunk_scan_combined(*inputs, 64, num_sms=108)))
    few = probe(lambda: _tensor(mamba_chunk_scan_combined(*inputs, 64, num_sms=4)))
    # 16 programs on 4 multiprocessors: each handles all 4 heads, so there is one partial sum instead of 4
    assert many.backward_peak - few.backward_peak == 3 * 4 * 64 * 64 * 4


def test_the_split_kernel_keeps_the_scan_s_output_and_the_norm_s_statistics() -> None:
    # gate 64 + (x 64, B 32, C 32) + dt 4 = 196 channels
    projected, conv, conv_bias = leaf(1, 256, 196), leaf(128, 4), leaf(128)
    dt_bias, A, D, norm, out_proj = leaf(4), leaf32(4), leaf(4), leaf(64), leaf(48, 64)
    found = probe(
        lambda: _given(
            mamba_split_conv1d_scan_combined(
                projected,
                conv,
                conv_bias,
                dt_bias,
                A,
                D,
                64,
                rmsnorm_weight=norm,
                outproj_weight=out_proj,
                headdim=16,
                num_sms=108,
            )
        )
    )
    assert found.kept == [256 * 64 * 2, 256 * 48 * 2, 256 * 4]  # scan's output, projection, one fp32 per token


def test_the_split_kernel_keeps_tensors_that_autocast_casts() -> None:
    projected, conv, out_proj = leaf(1, 256, 196), leaf(128, 4), leaf32(48, 64)
    dt_bias, A, D = leaf(4), leaf32(4), leaf(4)

    def run() -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return _given(
                mamba_split_conv1d_scan_combined(
                    projected, conv, None, dt_bias, A, D, 64, outproj_weight=out_proj, headdim=16, num_sms=108
                )
            )

    # without a norm the gate is the scan's: its output before the gate is kept; the projection's weight in bf16
    assert probe(run).kept == [256 * 64 * 2, 256 * 48 * 2, 48 * 64 * 2]


def _given(out: torch.Tensor | None) -> torch.Tensor:
    assert out is not None
    return out


def _tensor(out: object) -> torch.Tensor:
    assert isinstance(out, torch.Tensor)
    return out
