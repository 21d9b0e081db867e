"""cuBLAS's workspace: its size depends on the card, and each thread allocates it once."""

from __future__ import annotations

import pytest
import torch
from support.core_probe import A100, B200, H100, L40S, RTX5090, leaf, record

from axmem_trace.kernels.core.matmul import cublas_workspace_bytes


@pytest.mark.parametrize(
    ("capability", "nbytes"),
    [
        (A100, 8_519_680),  # 2 * 4096 KiB + 8 * 16 KiB
        (L40S, 8_519_680),
        ((7, 5), 8_519_680),
        (H100, 33_554_432),  # 32 MiB
        (B200, 33_554_432),
        (RTX5090, 33_554_432),
    ],
)
def test_size_by_card(capability, nbytes):
    assert cublas_workspace_bytes(capability) == nbytes


def test_one_for_forward_and_one_for_backward():
    x, w = leaf(64, 128), leaf(128, 128)
    seen = [each for each in record(lambda: (x @ w) @ w, capability=H100) if each.op == "cuBLAS"]
    assert [(each.nbytes, each.phase, each.role, each.module) for each in seen] == [
        (33_554_432, "forward", "workspace", ""),
        (33_554_432, "backward", "workspace", ""),
    ]
    assert all(each.freed_tick > 1 << 60 for each in seen)


def test_products_with_a_bias_use_the_same_block():
    x, w, b = leaf(64, 128), leaf(128, 128), leaf(128)
    seen = record(lambda: torch.nn.functional.linear(x, w, b) @ w)
    assert sum(each.op == "cuBLAS" for each in seen) == 2


def test_without_a_product_there_is_none():
    x = leaf(64, 128)
    assert not any(each.op == "cuBLAS" for each in record(lambda: x * 2))
