"""Cross-entropy of half-precision logits under CUDA's autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.tracing.kernels.registry import KernelContext, function_rule

_HALF = (torch.float16, torch.bfloat16)


@function_rule(F.cross_entropy)
def cross_entropy_under_autocast(
    context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`cross_entropy` is on no list of autocast, but it is made of two operators that are: `log_softmax` is asked for an
    fp32 result, and `nll_loss` takes that. Given bf16, `log_softmax` makes an fp32 copy of all logits first; given fp16,
    its kernel reads them as they are.

    Source: torch 2.13 aten/src/ATen/native/LossNLL.cpp `cross_entropy_loss_symint`, SoftMax.cpp `log_softmax`
    (`half_to_float`), ATen/autocast_mode.h.
    """
    logits, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
    if not torch.is_autocast_enabled("cuda") or logits.dtype not in _HALF:
        return function(logits, *rest, **kwargs)
    if logits.dtype == torch.bfloat16 or kwargs.get("label_smoothing"):
        return function(logits.float(), *rest, **kwargs)
    kwargs.pop("label_smoothing", None)
    return F.nll_loss(torch._log_softmax(logits, 1 if logits.dim() > 1 else 0, True), *rest, **kwargs)
