"""Linear layers with FP8 weights (`FP8Linear`), which are frozen, with an adapter.

Source: transformers 5.24 `integrations/finegrained_fp8.py` (`FP8LinearFunction`, `_dequantize_fp8_weight`). Earlier releases
lack these: their kernel has no backward. DeepGEMM's kernel quantises its input first (`integrations/deepgemm.py`); Triton's
quantises it while reading. DeepGEMM's kernel needs more memory, and is assumed.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from axmem_trace.kernels.site import Site

_BLOCK = 128
"""Inputs have one scale for each 128 values of a row."""


def install_fp8_linear(site: Site) -> None:
    """Replace the matmul, so that the kernel's package is not needed. Add a backward if the installed release has none."""
    module: Any = sys.modules.get("transformers.integrations.finegrained_fp8")
    if module is None or not any(type(each).__name__ == "FP8Linear" for each in site.model.modules()):
        return
    has_backward = hasattr(module, "FP8LinearFunction")

    def fp8_linear(
        input: torch.Tensor,
        weight: torch.Tensor,
        weight_scale_inv: torch.Tensor,
        block_size: Any = None,
        bias: Any = None,
        activation_scale: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if has_backward:
            return _product(input, weight, bias)
        out: torch.Tensor = _Fp8Linear.apply(input, weight, weight_scale_inv, block_size, bias)
        return out

    site.replace_attribute(module, "fp8_linear", fp8_linear)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, block: Any, bias: Any) -> Any:
        ctx.save_for_backward(weight, scale)
        ctx.block = block
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad,) = grad_outputs
        weight, scale = ctx.saved_tensors
        return grad @ _unpacked(weight, scale, ctx.block, grad.dtype), None, None, None, None


def _product(input: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
    """Rows times weights [out, in], in the input's dtype. The quantised input and its scales are temporary."""
    packed = torch.empty_like(input, dtype=weight.dtype)
    scales = input.new_empty((*input.shape[:-1], -(-input.shape[-1] // _BLOCK)), dtype=torch.float32)
    out = input.new_empty((*input.shape[:-1], weight.shape[0]))
    del packed, scales
    return out if bias is None else out.add_(bias)


def _unpacked(weight: torch.Tensor, scale: torch.Tensor, block: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight in `dtype`, multiplied in place by its scales, which are expanded over its rows."""
    unpacked, scale = weight.to(dtype), scale.to(dtype)
    if block is not None:
        scale = scale.repeat_interleave(block[0], dim=-2)[: weight.shape[0]]
    return unpacked
