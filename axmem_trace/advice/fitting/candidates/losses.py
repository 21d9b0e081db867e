"""Functions that all candidates for the loss use."""

from __future__ import annotations

from typing import Any

from axmem_trace.advice.fitting.candidate import Situation

_UNFUSED = ("native", "shifted_copy", "upcast_shifted_copy", "half_shifted_copy", "liger_cross_entropy")
"""Paths of the loss that store all logits at the same time."""
_OTHER_LOSSES = (
    "cut_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "chunked_cross_entropy",
    "liger_cross_entropy",
)


def holds_all_logits(situation: Situation) -> bool:
    """True if the loss is the usual one over labels, and all logits exist at the same time."""
    recipe = situation.recipe
    return recipe.loss.path in _UNFUSED and not recipe.objective.is_preference


def switch_loss(situation: Situation, key: str) -> dict[str, Any]:
    """Switches one of axolotl's losses on and the others off, because axolotl accepts only one."""
    others = {other: False for other in _OTHER_LOSSES if other != key and situation.values.get(other)}
    return {**others, key: True}
