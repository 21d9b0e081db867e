"""Liger's layers, compared with Liger's own code.

The figures in bytes are those of liger-kernel 0.8.1 itself: its Python code ran on a CPU with this package's recorder
and a triton whose kernels do nothing (one streaming multiprocessor). The size of every allocation was the same, not
only these sums. The comments explain the figures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.kernel_lifetimes import Lives, live, tensor

from axmem_trace.kernels.axolotl.fused_attention import norm_and_rotate
from axmem_trace.kernels.liger.experts import FusedExperts
from axmem_trace.kernels.liger.layers import (
    GatedActivation,
    GatedRmsNorm,
    LayerNorm,
    RmsNorm,
    Rope,
    SquaredRelu,
)

ROWS, TOKENS, WIDTH = 2, 64, 96
X = ROWS * TOKENS * WIDTH * 2
"""24,576 bytes of bf16."""
PER_ROW = ROWS * TOKENS * 4
"""512 bytes: an fp32 number for each token."""


@pytest.mark.parametrize(
    ("weight", "in_place", "expected"),
    [
        # forward y and a reciprocal per row; backward dy, then fp32 partial [1, 96] (384), its sum (384), cast (192)
        (torch.bfloat16, True, Lives(X + PER_ROW, 25088, 50624, 24768)),
        # and zeros for dx
        (torch.bfloat16, False, Lives(X + PER_ROW, 25088, 75200, 24768)),
        # the sum of an fp32 weight's gradient is not cast
        (torch.float32, True, Lives(X + PER_ROW, 25088, 50432, 24960)),
    ],
)
def test_rms_norm(weight: torch.dtype, in_place: bool, expected: Lives) -> None:
    x, scale = tensor(ROWS, TOKENS, WIDTH), tensor(WIDTH, dtype=weight)
    assert live([x, scale], lambda x, w: RmsNorm.apply(x, w, in_place, 1)) == expected


def test_rms_norm_copies_what_is_not_contiguous() -> None:
    x, scale = tensor(ROWS, WIDTH, TOKENS), tensor(WIDTH, grad=False)
    lives = live([x, scale], lambda x, w: RmsNorm.apply(x.transpose(1, 2), w, False, 1))
    assert lives == Lives(2 * X + PER_ROW, 49664, 99776, 24576)


def test_rms_norm_has_a_row_of_the_weights_gradient_per_multiprocessor() -> None:
    x, scale = tensor(ROWS, TOKENS, WIDTH), tensor(WIDTH)
    with_one, with_132 = (
        live([x, scale], lambda x, w, sms=sms: RmsNorm.apply(x, w, True, sms)).backward for sms in (1, 132)
    )
    assert with_132 - with_one == 131 * WIDTH * 4


def test_layer_norm() -> None:
    # mean and reciprocal in x's dtype (2 x 256); backward dy, dx, two fp32 partials (2 x 384) and while the second is
    # cast: sums of both, 384 + 192 + 192
    lives = live(
        [tensor(ROWS, TOKENS, WIDTH), tensor(WIDTH), tensor(WIDTH)], lambda x, w, b: LayerNorm.apply(x, w, b, 1)
    )
    assert lives == Lives(X + 512, 25088, 75776, 24960)


def test_gated_activation_keeps_and_overwrites_gate_and_up() -> None:
    both = [tensor(ROWS, TOKENS, WIDTH), tensor(ROWS, TOKENS, WIDTH)]
    # gate, up (made here) and the product; backward dy, and a copy as the leaf's gradient while the buffers are still
    # alive
    assert live(both, lambda a, b: GatedActivation.apply(a * 1, b * 1)) == Lives(3 * X, 3 * X, 5 * X, 2 * X)
    # Falcon-H1 multiplies the product out of place
    assert live(both, lambda a, b: GatedActivation.apply(a * 1, b * 1, True)) == Lives(4 * X, 3 * X, 5 * X, 2 * X)


def test_gated_activation_copies_halves_of_one_projection() -> None:
    # Phi-3: the projection (2 X) and contiguous copies of its halves (2 X), and the product
    def run(both: torch.Tensor) -> Any:
        return GatedActivation.apply(*(both * 1).chunk(2, dim=-1))

    assert live([tensor(ROWS, TOKENS, 2 * WIDTH)], run) == Lives(5 * X, 3 * X, 147456, 2 * X)


def test_gated_norm_and_squared_relu() -> None:
    # axolotl's kernels/rms_norm_gated.py: x and gate were made here; y, a reciprocal per row; backward dy, dx, dgate
    # and partial (384), sum (384), cast (192)
    width = [tensor(ROWS, TOKENS, WIDTH), tensor(ROWS, TOKENS, WIDTH), tensor(WIDTH)]
    lives = live(width, lambda x, gate, w: GatedRmsNorm.apply(x * 1, gate * 1, w, 1))
    assert lives == Lives(3 * X + PER_ROW, 3 * X + PER_ROW, 6 * X + PER_ROW + 960, 2 * X + 192)
    assert live(width[:1], lambda x: SquaredRelu.apply(x * 1)) == Lives(2 * X, 2 * X, 4 * X, X)


@pytest.mark.parametrize(("tokens_first", "expected"), [(True, (36864, 110592)), (False, (73728, 135168))])
def test_rope_works_in_place_if_tokens_are_the_first_dimension(tokens_first: bool, expected: tuple[int, int]) -> None:
    # q [2, 64, 4, 24] 24,576 and k [2, 64, 2, 24] 12,288 bytes; if heads are the first dimension, they are copied
    def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        q, k = q * 1, k * 1
        return (
            Rope.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin) if tokens_first else Rope.apply(q, k, cos, sin)
        )

    shapes = [(2, 64, 4, 24), (2, 64, 2, 24)] if tokens_first else [(2, 4, 64, 24), (2, 2, 64, 24)]
    turn = [tensor(1, 64, 24, grad=False) for _ in "cs"]
    lives = live([*(tensor(*shape) for shape in shapes), *turn], run)
    assert (lives.forward, lives.kept, lives.backward) == (expected[0], 36864, expected[1])


def test_norm_and_rotation_in_one_kernel() -> None:
    # axolotl's kernels/gemma4_fused_rope.py: x (made here) and y 16,384 each, cos and sin expanded over both rows
    # (2 x 4,096), 256 heads' reciprocals in fp32 (1,024); backward dy and dx, and 8 rows of the weight's gradient
    # in fp32 (1,024), their sum (128) and its cast (64)
    turn = [tensor(1, 32, 32, grad=False) for _ in "cs"]
    lives = live(
        [tensor(2, 32, 4, 32), tensor(32), *turn], lambda x, w, cos, sin: norm_and_rotate(x * 1, w, cos, sin, 8)
    )
    assert lives == Lives(41984, 41984, 41984 + 2 * 16384 + 1024 + 128 + 64, 16448)


def test_fused_experts() -> None:
    # 64 tokens, 2 of 4 experts each, hidden 256, intermediate 24: what each line of `ops/fused_moe.py` allocates
    index = (torch.arange(128).view(64, 2) % 4).to(torch.int32).to("meta")
    inputs = [tensor(64, 256), tensor(4, 48, 256), tensor(4, 256, 24), index, tensor(64, 2)]
    lives = live(inputs, lambda x, up, down, index, scores: FusedExperts.apply(x * 1, up, down, index, scores * 1))
    assert (lives.kept, lives.backward, lives.after) == (79668, 376884, 180480)
    assert lives.forward == pytest.approx(151364, abs=16)
