"""The door of this package: `install_experts`, opened around the trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn

from axmem_trace.notes import Note
from axmem_trace.tracing.kernels.experts.routing import Routing
from axmem_trace.tracing.kernels.registry import KernelContext

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "n_experts")
"""What models and their configurations call the number of routed experts."""


@contextmanager
def install_experts(module: nn.Module, context: KernelContext) -> Iterator[None]:
    """While open, routers of the built model choose as the recipe assumes, and experts run as on the context's card."""
    counts = count_experts(module)
    if not counts:
        yield
        return
    routing = Routing(counts, "worst" if context.router == "worst" else "balanced")
    routing.attach(context.recorder)
    context.options["routing"] = routing
    context.note(_routing_note(routing))
    from transformers.integrations import moe

    def can_use_grouped_mm(*args: Any) -> bool:
        return context.compute_capability >= (8, 0)  # as the original asks of a CUDA device

    with patch.object(moe, "_can_use_grouped_mm", can_use_grouped_mm):
        yield


def count_experts(module: nn.Module) -> frozenset[int]:
    """The numbers of experts that the model's routers choose among, from modules and their configurations."""
    found: set[int] = set()
    for part in module.modules():
        for source in (part, getattr(part, "config", None)):
            for name in _COUNTS:
                value = getattr(source, name, None)
                values = value if isinstance(value, list | tuple) else (value,)
                found.update(each for each in values if isinstance(each, int) and each > 1)
    return frozenset(found)


def _routing_note(routing: Routing) -> Note:
    counts = " or ".join(str(count) for count in sorted(routing.expert_counts))
    if routing.router == "worst":
        how = "every token takes the same experts, so that these get all tokens and the others none"
    else:
        how = "tokens are spread evenly (`--assume router=worst` for the other extreme)"
    return Note(kind="assumed", key="router", text=f"routing to {counts} experts: {how}")
