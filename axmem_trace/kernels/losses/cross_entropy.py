"""PyTorch's own `cross_entropy` under autocast, as on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.function(F.cross_entropy)
def cross_entropy(
    context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Under autocast, half-precision logits get a log-softmax in their own dtype, and `nll_loss` makes an fp32 copy of it.

    Autocast sees the calls inside this function. There `log_softmax` gets an explicit dtype, so autocast does not change it.

    Source: aten/src/ATen/native/LossNLL.cpp, `cross_entropy_loss_symint`; autocast_mode.h.
    """
    call = _bind_loss(*args, **kwargs)
    logits, target = call["input"], call["target"]
    whole = logits.shape == target.shape or call["label_smoothing"] or logits.dtype is torch.float32
    if whole or not logits.is_meta or not torch.is_autocast_enabled("cuda"):
        return call_original(function, args, kwargs)
    dim = 0 if logits.dim() == 1 else 1
    logarithms = aten._log_softmax(logits, dim, False).float()
    return F.nll_loss(
        logarithms, target, call["weight"], ignore_index=call["ignore_index"], reduction=call["reduction"]
    )


def _bind_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    return dict(locals())
