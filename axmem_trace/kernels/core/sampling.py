"""Sampling as on CUDA."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()


@RULES.workspace(aten.multinomial.default)
def multinomial_workspace(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """One sample for each row: the index at which probability / (an exponentially distributed number) is largest.

    Source: Distributions.cpp, `multinomial_out`: `at::empty_like(self).exponential_()`, then a division in place.
    """
    return [args[0].numel() * args[0].element_size()]
