"""Calls of `scaled_dot_product_attention`: every head size, mask, dtype, dropout and grouping that models have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BACKENDS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
"""`at::SDPBackend`."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """Sizes are (B, H, S, D)."""

    query: tuple[int, int, int, int]
    key: tuple[int, int, int, int]
    value: tuple[int, int, int, int]
    dtype: torch.dtype = BF16
    mask: tuple[int, ...] = ()
    boolean: bool = True
    dropout: float = 0.0
    causal: bool = False
    grouped: bool = False
    transposed: bool = True
    """(B, S, H, D) in memory, as projections write heads."""

    def options(self, mask: torch.Tensor | None) -> dict[str, Any]:
        """The arguments of `scaled_dot_product_attention` other than the heads."""
        return {"attn_mask": mask, "dropout_p": self.dropout, "is_causal": self.causal, "enable_gqa": self.grouped}


def make_call(call: Call, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Query, key, value and mask."""

    def heads(size: tuple[int, int, int, int]) -> torch.Tensor:
        batch, number, tokens, head_dim = size
        if not call.transposed:
            return torch.empty(size, dtype=call.dtype, device=device, requires_grad=True)
        tensor = torch.empty(batch, tokens, number, head_dim, dtype=call.dtype, device=device)
        return tensor.transpose(1, 2).detach().requires_grad_()

    mask_dtype = torch.bool if call.boolean else call.dtype
    mask = torch.empty(call.mask, dtype=mask_dtype, device=device) if call.mask else None
    return heads(call.query), heads(call.key), heads(call.value), mask


def _call(
    batch: int,
    heads: int,
    tokens: int,
    head_dim: int,
    *,
    value_dim: int = 0,
    kv_heads: int = 0,
    keys: int = 0,
    masked: bool = False,
    **options: object,
) -> Call:
    kv = (batch, kv_heads or heads, keys or tokens)
    if masked:
        options["mask"] = (batch, 1, tokens, keys or tokens)
    return Call(
        query=(batch, heads, tokens, head_dim),
        key=(*kv, head_dim),
        value=(*kv, value_dim or head_dim),
        grouped=bool(kv_heads),
        **options,
    )


def _calls() -> Iterator[Call]:
    for head_dim in (32, 64, 80, 96, 100, 128, 192, 224, 256, 320, 512):
        yield _call(2, 8, 500, head_dim, causal=True)
        yield _call(2, 8, 500, head_dim, masked=True)
    for head_dim, value_dim in ((192, 128), (96, 64)):  # DeepSeek V2 and V3, MiniCPM3
        yield _call(2, 8, 500, head_dim, value_dim=value_dim, causal=True)
        yield _call(2, 8, 500, head_dim, value_dim=value_dim, masked=True)
    yield _call(2, 8, 512, 128, kv_heads=2, causal=True)
    yield _call(2, 8, 512, 128, kv_heads=2, masked=True)
    yield _call(1, 32, 2048, 128, kv_heads=8, causal=True)
    yield _call(2, 8, 512, 64, kv_heads=2, causal=True, dtype=FP32)
    yield _call(2, 8, 500, 64, causal=True, dropout=0.1)
    yield _call(2, 8, 500, 64, causal=True, dropout=0.125)
    for head_dim in (20, 64, 96, 128, 256):
        yield _call(2, 8, 500, head_dim, masked=True, dropout=0.1)
    yield _call(2, 8, 500, 20, masked=True)
    for head_dim in (64, 96, 128, 256):
        for dtype in (FP32, FP16):
            yield _call(2, 8, 500, head_dim, causal=True, dtype=dtype)
            yield _call(2, 8, 500, head_dim, masked=True, dtype=dtype)
    yield _call(2, 8, 300, 64, keys=500, causal=True)
    yield _call(2, 8, 500, 64, causal=True, transposed=False)
    yield _call(2, 8, 500, 128, masked=True, transposed=False)
    yield _call(2, 8, 500, 64, mask=(500, 500), boolean=False)
    yield _call(4, 32, 1024, 128, masked=True)
    yield _call(8, 40, 200, 128, masked=True)
    yield _call(1, 2, 300, 64, causal=True)


CALLS = tuple(_calls())
PACKED = ((1000, 8, 64, (300, 700)), (2048, 32, 128, (2048,)), (777, 4, 256, (7, 70, 700)), (640, 8, 96, (64,) * 10))
"""Tokens, heads, head size, lengths of samples: for `varlen_attn`."""
