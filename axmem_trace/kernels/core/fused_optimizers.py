"""Fused Adam, AdamW and SGD, and the loss scaler: kernels for lists of tensors. Meta does not have them."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

RULES = Rules()

aten = torch.ops.aten


@RULES.dispatch(
    aten._fused_adam_.default,
    aten._fused_adam_.tensor_lr,
    aten._fused_adamw_.default,
    aten._fused_adamw_.tensor_lr,
    aten._fused_sgd_.default,
    aten._fused_sgd_.tensor_lr,
    aten._amp_foreach_non_finite_check_and_unscale_.default,
    aten._amp_update_scale_.default,
)
def in_place_multi_tensor(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Kernels that update lists of tensors in place and allocate nothing.

    Source: aten/src/ATen/native/cuda/FusedAdamWKernel.cu, FusedSgdKernel.cu (`multi_tensor_apply_for_fused_optimizer`:
    the addresses of tensors are arguments of the kernel) and AmpKernels.cu. Meta has no kernel for some of them.
    """
    return args[0] if op is aten._amp_update_scale_.default else None
