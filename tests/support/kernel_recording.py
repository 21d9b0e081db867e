"""What the probes of kernels share: backward from a gradient that no record has, and the peak of some allocations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import _disable_current_modes

from axmem_trace.ledger import Allocation


def run_backward(out: torch.Tensor) -> None:
    """Backward from `out`, by the engine that the modes around see; the gradient of `out` is not recorded."""
    with _disable_current_modes():
        gradient = torch.empty_like(out)
    _engine_run_backward((out,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def peak_bytes(allocations: Sequence[Allocation], *, in_blocks: bool = False) -> int:
    """The most bytes of these that were alive at once, as asked for or in the allocator's blocks."""
    changes = sorted(
        change
        for each in allocations
        for nbytes in (each.block_bytes if in_blocks else each.nbytes,)
        for change in ((each.born, nbytes), (each.died, -nbytes))
    )
    return max(accumulate((nbytes for _, nbytes in changes), initial=0))
