"""ZeRO-3: the modules of a sharded model gather their parameters when they run. For the policy and for a frozen model.

Source: deepspeed 0.19.8 `runtime/zero/parameter_offload.py` `DeepSpeedZeRoOffload.__init__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from axmem_trace.parallel.zero.coordinator import Coordinator
from axmem_trace.parallel.zero.module_hooks import ModuleHooks
from axmem_trace.parallel.zero.parts import Part, Parts
from axmem_trace.recipe.parallel import Zero


def gather_by_hooks(
    model: nn.Module,
    parts: Parts,
    zero: Zero,
    *,
    prefetch: int,
    persistence: int,
    is_leaf: Callable[[nn.Module], bool],
    device: torch.device,
) -> tuple[list[Part], Coordinator]:
    """Adds the hooks. Returns the parameters that stay whole, and the coordinator that gathers the others.

    Args:
        prefetch: the number of elements that are gathered in advance.
        persistence: the largest number of elements of a parameter that stays whole.
        is_leaf: returns whether a module is fetched together with all modules inside it.
    """
    accelerator: Any = torch.meta  # type: ignore[attr-defined]
    externals: dict[int, dict[int, nn.Parameter]] = {}
    persistent = _mark_persistent(model, parts, zero, persistence)
    coordinator = Coordinator(
        parts,
        prefetch=prefetch,
        max_live=zero.max_live_elements,
        max_reuse=zero.max_reuse_elements,
        stream=accelerator.Stream() if zero.overlaps else accelerator.default_stream(),
        is_leaf=is_leaf,
        externals=externals,
        device=device,
        keeps_recomputed=zero.keeps_recomputed,
    )
    ModuleHooks(model, parts, coordinator, is_leaf=is_leaf, externals=externals)
    return persistent, coordinator


def _mark_persistent(model: nn.Module, parts: Parts, zero: Zero, most: int) -> list[Part]:
    """Marks the parameters with at most `most` elements, which stay whole between steps."""
    found, total = [], 0
    for parameter in model.parameters():
        part = parts.of(parameter)
        if part is None or part.numel + total > zero.model_persistence_elements or part.numel > most:
            continue
        part.persists = True
        found.append(part)
        total += part.numel
    return found
