"""The norm of the gradients, and the search for infinite values, with DeepSpeed's temporary tensors.

Source: deepspeed 0.19.8 `runtime/utils.py` `has_inf_or_nan`, `combine_grad_norm_groups`, `mask_nan_or_inf_with_val_inplace`;
`runtime/zero/stage_1_and_2.py` `get_grad_norm_direct`, `has_overflow`, `unscale_and_clip_grads`. 0.18.9 looks for
infinite values element by element (`_has_inf_or_nan`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist


def is_infinite(tensor: torch.Tensor, *, elementwise: bool) -> torch.Tensor:
    """Whether the tensor has an infinite value or NaN, as a scalar tensor."""
    if not elementwise:
        return torch.isfinite(tensor.amax()).logical_and(torch.isfinite(tensor.amin())).logical_not()
    wide = tensor.float()
    nan = wide.isnan()
    infinite = wide.isinf()
    either = nan.logical_or(infinite)
    return either.float().max()


def find_overflow(gradients: Iterable[torch.Tensor], *, elementwise: bool, device: torch.device) -> None:
    """`has_overflow`: the ranks compute together whether any gradient is infinite. The host waits for the result."""
    count = torch.zeros([1], dtype=torch.float, device=device)
    for gradient in gradients:
        count += is_infinite(gradient, elementwise=elementwise)
    overflow = count.bool()
    flag = overflow.byte().to(device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)


def norm_of_group(gradients: Sequence[torch.Tensor], *, masks: bool, device: torch.device) -> torch.Tensor:
    """The norm of one group's gradients over all ranks. Each gradient is copied to fp64, one after the other."""
    norms = [torch.linalg.vector_norm(each.data.to(torch.double).detach(), ord=2.0).to(device) for each in gradients]
    total = torch.stack(norms).pow(2.0).sum().float() if norms else torch.tensor(0.0).to(device)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    total = total.pow(1.0 / 2.0)
    if masks:
        _mask(total)
    return total


def _mask(total: torch.Tensor) -> None:
    infinite = total.isinf()
    nan = total.isnan()
    either = nan.logical_or(infinite)
    total.masked_fill_(either, -1.0)


def combine(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The total norm, from the norms of the groups."""
    stacked = torch.stack(list(norms))
    invalid = (~torch.isfinite(stacked) | (stacked < 0)).any()
    combined = torch.linalg.vector_norm(stacked, ord=2)
    return torch.where(invalid, torch.full_like(combined, float("inf")), combined)


def clip(gradient: torch.Tensor, norm: torch.Tensor | None, max_norm: float) -> None:
    """Scales one flat gradient in place. Only scalars are allocated."""
    if norm is None or max_norm <= 0:
        return
    factor = torch.clamp((norm + 1e-6) / max_norm, min=1.0)
    gradient.data.mul_(1.0 / factor)
