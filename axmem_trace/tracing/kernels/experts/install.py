"""The door of this package: `install_experts`, opened around the trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

from torch import nn

from axmem_trace.notes import Note
from axmem_trace.tracing.kernels.experts.routing import Routing, find_tables
from axmem_trace.tracing.kernels.registry import KernelContext

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "n_experts",
           "num_router_classes")  # fmt: skip
"""What models and their configurations call the number of routed experts (ZAYA's router has a class for none of them)."""


_USUAL_LOOP = ("DbrxExperts",)
"""Experts outside transformers' interface whose loop asks for the same masks."""


@contextmanager
def install_experts(module: nn.Module, context: KernelContext, asked: str = "") -> Iterator[None]:
    """While open, routers of the built model choose as the recipe assumes, and experts run as on the context's card.

    Args:
        asked: the recipe's experts implementation; empty where transformers chooses.
    """
    counts = count_experts(module)
    if not counts:
        yield
        return
    running = _implementations(module)
    router: Literal["balanced", "worst"] = "worst" if context.router == "worst" else "balanced"
    routing = Routing(counts, router, always_known=not running and not _has_usual_loop(module),
                      tables=find_tables(module))  # fmt: skip
    routing.attach(context.recorder)
    context.options["routing"] = routing
    context.note(_routing_note(routing))
    for note in _implementation_notes(running, asked):
        context.note(note)
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


def _implementations(module: nn.Module) -> frozenset[str]:
    """What experts under transformers' interface (`use_experts_implementation`) run; empty where there are none."""
    return frozenset(
        str(getattr(part.config, "_experts_implementation", None) or "eager")
        for part in module.modules()
        if hasattr(part, "_apply_gate") and hasattr(part, "is_transposed") and hasattr(part, "config")
    )


def _has_usual_loop(module: nn.Module) -> bool:
    return any(type(part).__name__ in _USUAL_LOOP for part in module.modules())


def _implementation_notes(running: frozenset[str], asked: str) -> Iterator[Note]:
    key = "experts_implementation"
    if not running:
        return
    names = ", ".join(sorted(running))
    if asked in ("scattermoe", "sonicmoe"):
        text = (
            f"{asked} is not modelled: {names} was traced in its place. The real kernels fuse LoRA on experts instead "
            "of merging it into a copy of the weights, and keep no sorted copy of the tokens: with LoRA, expect less"
        )
        yield Note(kind="not_modelled", key=key, text=text)
        return
    why = "asked for" if asked else "transformers' default, `get_correct_experts_implementation` (modeling_utils.py)"
    yield Note(kind="traced", key=key, text=f"experts run as {names}: {why}")


def _routing_note(routing: Routing) -> Note:
    counts = " or ".join(str(count) for count in sorted(routing.expert_counts))
    if routing.router == "worst":
        how = "every token takes the same experts, so that these get all tokens and the others none"
    else:
        how = "tokens are spread evenly (`--assume router=worst` for the other extreme)"
    return Note(kind="assumed", key="router", text=f"routing to {counts} experts: {how}")
