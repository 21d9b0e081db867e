"""Adapters that become separate FSDP2 units, because all trainable parameters of a unit must have the same dtype.

Source: axolotl 0.21 `monkeypatch/accelerate/fsdp2_grouping.py` `plan_trainable_dtype_carveout`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


def find_separate_adapters(unit: nn.Module) -> list[nn.Module]:
    """The adapter parts of the unit whose dtype differs from that of its other trainable parameters.

    The trainable parameters outside adapters decide which dtype stays in the unit. If there are none, it is the dtype
    with the most parameters. Empty if there is only one dtype, or if more than one dtype would remain without the
    adapters.
    """
    from torch.distributed.fsdp import FSDPModule

    owners: dict[torch.dtype, list[nn.Module]] = {}
    counts: dict[torch.dtype, int] = {}
    fixed: set[torch.dtype] = set()
    for module, owner in _members(unit, None, FSDPModule):
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
            if owner is None or owner is unit:
                fixed.add(parameter.dtype)
            elif owner not in owners.setdefault(parameter.dtype, []):
                owners[parameter.dtype].append(owner)
    if len(counts) < 2 or len(fixed) > 1:
        return []
    stays = next(iter(fixed)) if fixed else max(counts, key=lambda dtype: counts[dtype])
    apart = [owner for dtype, found in owners.items() if dtype != stays for owner in found]
    is_pure = all({p.dtype for p in owner.parameters() if p.requires_grad} != {stays} for owner in apart)
    return apart if is_pure else []


def _members(
    module: nn.Module, owner: nn.Module | None, unit_class: type, parent: nn.Module | None = None
) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """The modules of a unit, each with the adapter part to which it belongs."""
    yield module, owner
    for child in module.children():
        if not isinstance(child, unit_class):
            yield from _members(child, owner or _as_adapter(child, module, parent), unit_class, module)


def _as_adapter(child: nn.Module, holder: nn.Module, layer: nn.Module | None) -> nn.Module | None:
    """The adapter part of a module: an embedding's LoRA layer as a whole; else one factor of an adapted layer (a member
    of its `lora_A`, `lora_B`, ...)."""
    if getattr(child, "lora_embedding_A", None) or getattr(child, "lora_embedding_B", None):
        return child
    is_factor = any(getattr(layer, name, None) is holder for name in ("lora_A", "lora_B", "lora_magnitude_vector"))
    return child if isinstance(holder, nn.ModuleDict) and is_factor else None
