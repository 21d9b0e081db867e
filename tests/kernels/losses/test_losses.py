"""Losses without logits, or with fewer logits: compared with the libraries' own code (see `test_layers.py`), and by
hand."""

from __future__ import annotations

import pytest
import torch
from support.kernel_lifetimes import Lives, live, targets, tensor

from axmem_trace.kernels.liger import fused_linear
from axmem_trace.kernels.liger.losses import (
    CrossEntropy,
    FusedLinearCrossEntropy,
    cross_entropy,
    next_power_of_2,
)
from axmem_trace.kernels.losses.cut_cross_entropy import cut_causal_lm_loss
from axmem_trace.kernels.losses.logit_losses import eaft_loss

TOKENS, WIDTH, VOCABULARY = 128, 96, 1000
HIDDEN = TOKENS * WIDTH * 2
HEAD = VOCABULARY * WIDTH * 2


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        # forward: logits 256,000 (made here), a loss per row 256, the mask 128, target * mask 1,024 and its max 8;
        # backward: the gradient is the logits, copied where they are a leaf's
        (torch.bfloat16, Lives(257416, 256002, 512006, 256000)),
        (torch.float32, Lives(513672, 512004, 1024012, 512000)),
    ],
)
def test_cross_entropy_overwrites_the_logits(dtype: torch.dtype, expected: Lives) -> None:
    logits = tensor(TOKENS, VOCABULARY, dtype=dtype)
    assert live([logits, targets(TOKENS)], lambda x, t: CrossEntropy.apply(x * 1, t, -100)) == expected


def test_cross_entropy_per_row_multiplies_the_gradient_out_of_place() -> None:
    lives = live([tensor(TOKENS, VOCABULARY), targets(TOKENS)], lambda x, t: cross_entropy(x * 1, t, reduction="none"))
    assert lives == Lives(257416, 256256, 512512, 256000)


@pytest.mark.parametrize(
    ("dtype", "trains_head", "expected"),
    [
        # both gradients (24,576 + 192,000) and the loss are left of forward; in it: chunks of 16 rows
        # (next_power_of_2(ceil(128 / ceil(1000 / 96))) = 16), the product of the head's gradient in bf16 (192,000)
        # and in fp32 (384,000) at once
        (torch.bfloat16, True, Lives(849792, 216580, 241164, 216576)),
        (torch.bfloat16, False, Lives(113792, 24580, 49164, 24576)),
        (torch.float32, True, Lives(930944, 433156, 482316, 433152)),
    ],
)
def test_fused_linear_cross_entropy(dtype: torch.dtype, trains_head: bool, expected: Lives) -> None:
    inputs = [tensor(TOKENS, WIDTH, dtype=dtype), tensor(VOCABULARY, WIDTH, dtype=dtype, grad=trains_head)]
    lives = live([*inputs, targets(TOKENS)], lambda x, w, t: FusedLinearCrossEntropy.apply(x * 1, w, t, -100))
    assert lives == expected


@pytest.mark.parametrize(
    ("dtype", "trains_head", "expected"),
    [
        # 0.8.4: in forward the hidden states (24,576, made here), both gradients, a loss per row 512, the mask 128 and one
        # buffer of logits for all chunks of 16 rows (32,000): products go into the gradients
        (torch.bfloat16, True, Lives(273792, 216580, 241164, 216576)),
        (torch.bfloat16, False, Lives(81792, 24580, 49164, 24576)),
        # fp32: the head's gradient still needs a separate product (384,000)
        (torch.float32, True, Lives(930944, 433156, 482316, 433152)),
    ],
)
def test_fused_linear_cross_entropy_of_0_8_4(dtype: torch.dtype, trains_head: bool, expected: Lives) -> None:
    inputs = [tensor(TOKENS, WIDTH, dtype=dtype), tensor(VOCABULARY, WIDTH, dtype=dtype, grad=trains_head)]
    lives = live(
        [*inputs, targets(TOKENS)], lambda x, w, t: fused_linear.FusedLinearCrossEntropy.apply(x * 1, w, t, -100)
    )
    assert lives == expected


def test_before_compute_capability_8_the_heads_gradient_needs_two_products() -> None:
    inputs = [tensor(TOKENS, WIDTH), tensor(VOCABULARY, WIDTH), targets(TOKENS)]
    direct, older = (
        live(inputs, lambda x, w, t, on=on: fused_linear.FusedLinearCrossEntropy.apply(x * 1, w, t, -100, False, on))
        for on in (True, False)
    )
    assert older.forward - direct.forward == 192_000 + 384_000  # in bf16, and in fp32


def test_token_scaling_of_0_8_4_needs_two_more_copies_of_a_chunks_logits() -> None:
    inputs = [tensor(TOKENS, WIDTH), tensor(VOCABULARY, WIDTH, grad=False), targets(TOKENS)]
    plain, scaled = (
        live(inputs, lambda x, w, t, on=on: fused_linear.FusedLinearCrossEntropy.apply(x * 1, w, t, -100, on))
        for on in (False, True)
    )
    assert scaled.forward - plain.forward == 2 * 32_000  # the copy and its softmax, then that and its rows
    assert scaled.kept == plain.kept


def test_a_chunk_has_at_most_all_rows() -> None:
    # ceil(100 / 96) = 2: next_power_of_2(ceil(3 / 2)) = 2 rows; with a vocabulary within the width, 4 rows of 3
    few = [tensor(3, WIDTH), tensor(90, WIDTH, grad=False), targets(3)]
    lives = live(few, lambda x, w, t: fused_linear.FusedLinearCrossEntropy.apply(x * 1, w, t, -100))
    # hidden states and their gradient 3 x 96 x 2 = 576 each, three losses 12, the mask 3, logits 3 x 90 x 2 = 540
    assert lives.forward == 2 * 576 + 12 + 3 + 540


def test_token_scaling_needs_four_more_copies_of_a_chunks_logits() -> None:
    inputs = [tensor(TOKENS, WIDTH), tensor(VOCABULARY, WIDTH, grad=False)]
    plain, scaled = (
        live([*inputs, targets(TOKENS)], lambda x, w, t, on=on: FusedLinearCrossEntropy.apply(x * 1, w, t, -100, on))
        for on in (False, True)
    )
    # Chunks of 16 rows: 32,000 bytes of logits. Without it, there are the logits of this chunk and of the chunk before.
    # With it, there are this chunk's logits, their copy, the softmax and its rows; and of the chunk before, those rows
    # and the scaled gradient.
    assert scaled.forward - plain.forward == (6 - 2) * 32_000
    assert scaled.kept == plain.kept


def test_fused_linear_cross_entropy_chunks_by_the_vocabulary() -> None:
    # Llama-3: 4,096 tokens, ceil(128256 / 4096) = 32 chunks of 128; logits of one chunk 31.3 MiB
    assert next_power_of_2(-(-4096 // -(-128256 // 4096))) == 128
    lives = live(
        [tensor(4096, 4096), tensor(128256, 4096, grad=False), targets(4096)],
        lambda x, w, t: FusedLinearCrossEntropy.apply(x, w, t, -100),
    )
    hidden = 4096 * 4096 * 2
    assert lives.kept == hidden + 4  # the gradient of the hidden states, and the loss
    assert lives.forward > hidden + 2 * 128 * 128256 * 2  # one chunk's logits while the next one's are made
    assert lives.forward < hidden + 2.2 * 128 * 128256 * 2


@pytest.mark.parametrize(
    ("head_dtype", "trains_head", "expected"),
    [
        # no logits: a number per token (126 valid ones), per vocabulary entry, and the indices; backward makes both
        # gradients
        (torch.bfloat16, True, Lives(30596, 30092, 255184, 216576)),
        (torch.bfloat16, False, Lives(30596, 30092, 63184, 24576)),
        # the gradient of an fp32 head is made in bf16 and cast while the locks are still allocated
        (torch.float32, True, Lives(30596, 30092, 639184, 408576)),
    ],
)
def test_cut_cross_entropy(head_dtype: torch.dtype, trains_head: bool, expected: Lives) -> None:
    inputs = [tensor(2, TOKENS // 2, WIDTH), tensor(VOCABULARY, WIDTH, dtype=head_dtype, grad=trains_head)]
    lives = live([*inputs, targets(2, TOKENS // 2)], lambda x, w, t: cut_causal_lm_loss(x * 1, w, t))
    assert lives == expected


def test_eaft_copies_the_logits_three_times() -> None:
    # fp32 logits (made here) [2, 32, 500] 128,000; without the last tokens 124,000; with labels picked out, and
    # again for the loss, 124,000 each, where log_softmax makes as much once more. axolotl's own: 521,642, 124,814,
    # 372,074 (it keeps a mask of 62 bytes where indices of 496 are kept here)
    lives = live(
        [tensor(2, 32, 500, dtype=torch.float32), targets(2, 32)],
        lambda x, t: eaft_loss(x * 1, t, torch.empty((), dtype=torch.int64, device="meta")),
    )
    assert lives.forward == pytest.approx(521642, abs=1024)
    assert lives.kept == pytest.approx(124814, abs=1024)
    assert lives.backward == pytest.approx(372074, abs=1024)
