"""What trains in a full fine-tune, and which towers are frozen."""

from __future__ import annotations

from torch import nn

from axmem_trace.notes import Note
from axmem_trace.recipe.types import Recipe


def freeze_parameters(model: nn.Module, recipe: Recipe, notes: list[Note]) -> None:
    """x."""
