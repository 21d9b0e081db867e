"""What the probes of kernels share: backward from a gradient that no record has, and the peak of some allocations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import _disable_current_modes

from axmem_trace.ledger import Allocation


def run_backward(out: torch.Tensor) -> None:
    """Backward from `out`, by the engine that the modes around see; the gradient of `out` is not recorded."""
    with _disable_current_modes():
        gradient = torch.empty_like(out)
    _engine_run_backward((out,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def peak_bytes(allocations: Sequence[Allocation]) -> int:
    """The most bytes of these that were alive at once."""
    return max(
        (sum(other.nbytes for other in allocations if other.alive(each.born)) for each in allocations), default=0
    )
