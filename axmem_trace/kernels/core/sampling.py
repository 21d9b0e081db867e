"""Sampling as CUDA runs it."""

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
    """One sample per row: the index of the largest quotient of probability and an exponentially distributed number.

    Source: Distributions.cpp, `multinomial_out`: `at::empty_like(self).exponential_()`, then divided in place.
    """
    return [args[0].numel() * args[0].element_size()]
