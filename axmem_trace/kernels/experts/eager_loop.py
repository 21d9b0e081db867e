"""Operators that need values of the routing: in the eager loop over experts, packed experts, and load-balancing losses.

The recorder knows the values of small masks, which it derives from the routing. A mask of tokens x top_k x experts is often
too large for this. Then these rules calculate its values from the routing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.experts.routing import Assignment, Routing
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


def scattered_one_hot(tensor: torch.Tensor, num_classes: int) -> torch.Tensor:
    """`F.one_hot` as on CUDA: int64 zeros with ones scattered into them.

    Source: aten/src/ATen/native/Onehot.cpp `one_hot`. Only on meta (and for the compiler) it compares with an `arange`,
    which needs a temporary boolean tensor of the result's shape. Only on a CPU it checks for invalid classes.
    """
    out = torch.zeros((*tensor.shape, num_classes), dtype=tensor.dtype, device=tensor.device)
    return out.scatter_(-1, tensor.unsqueeze(-1), 1)


@RULES.function(F.one_hot)
def one_hot(context: KernelContext, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """On meta, runs as on CUDA. Without `num_classes`, torch reads it from the values, which meta tensors don't have."""
    tensor = args[0] if args else kwargs["input"]
    num_classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
    if not tensor.is_meta or num_classes <= 0:
        return call_original(function, args, kwargs)
    return scattered_one_hot(tensor, num_classes)


def rules_of(routing: Routing) -> Rules:
    """Rules that calculate the values of large masks and indices from the latest decision of the routing."""
    rules = Rules()

    @rules.dispatch(aten.nonzero.default)
    def nonzero(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        found = None if routing.latest is None else _nonzero(context, args[0], routing.latest)
        return call_original(op, args, kwargs) if found is None else found

    @rules.dispatch(aten._unique2.default)
    def unique(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = None if routing.latest is None or any(args[2:4]) else _unique(context, args[0], routing.latest)
        return tuple(call_original(op, args, kwargs)) if found is None else found

    return rules


def _nonzero(context: KernelContext, mask: torch.Tensor, latest: Assignment) -> torch.Tensor | None:
    """The experts that are used, or the tokens of one expert; None if the mask is not one of the routing.

    transformers' loop (`integrations/moe.py`) permutes the one-hot mask to [experts, top_k, tokens] and uses the slice of
    one expert. So the slice's offset in the storage is the number of the expert. Masks of transformers 5.23 have one more
    class than there are experts, for tokens of another rank.
    """
    if mask.ndim == 1 and mask.shape[0] in _classes(latest):
        with context.recorder.paused():
            used = torch.arange(latest.used_experts()).unsqueeze(1)
        return _known(context, used)
    if _is_slice_of_one_hot(mask, latest):
        tokens = latest.tokens_of(int(mask.storage_offset()))
        # CUDA's nonzero returns a transposed [ndim, n] buffer (aten/src/ATen/native/cuda/Nonzero.cu)
        return torch.empty((mask.ndim, tokens), dtype=torch.int64, device=mask.device).t()
    return None


def _unique(context: KernelContext, index: torch.Tensor, latest: Assignment) -> tuple[torch.Tensor, ...] | None:
    """The experts that at least one token has chosen (`get_active_experts` of ScatterMoE)."""
    if index.dtype != torch.int64 or index.numel() != latest.tokens * latest.top_k:
        return None
    with context.recorder.paused():
        used = torch.arange(latest.used_experts())
    nothing = torch.empty(0, dtype=torch.int64, device=index.device)
    return _known(context, used), nothing, nothing


def _classes(latest: Assignment) -> tuple[int, int]:
    return latest.num_experts, latest.num_experts + 1


def _is_slice_of_one_hot(mask: torch.Tensor, latest: Assignment) -> bool:
    return (
        tuple(mask.shape) == (latest.top_k, latest.tokens)
        and mask.stride() in [(classes, latest.top_k * classes) for classes in _classes(latest)]
        and int(mask.storage_offset()) < latest.num_experts
    )


def _known(context: KernelContext, value: torch.Tensor) -> torch.Tensor:
    tensor = torch.empty_like(value, device="meta")
    context.recorder.values.learn(tensor, value)
    return tensor


@RULES.dispatch(aten.bincount.default)
def bincount(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """For indices whose values are not known: one count for each of the `minlength` classes.

    Load-balancing losses count the experts of all layers' tokens (`load_balancing_loss_func` in transformers' models).
    """
    minlength = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
    if minlength <= 0:
        return call_original(op, args, kwargs)
    weights = args[1] if len(args) > 1 else kwargs.get("weights")
    dtype = torch.int64 if weights is None else torch.float32 if weights.dtype is torch.float32 else torch.float64
    return torch.empty(minlength, dtype=dtype, device=args[0].device)
