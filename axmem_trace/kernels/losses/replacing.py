"""Replaces a loss: a function in transformers' table, or the model's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note

IGNORE = -100
"""The label of a token that is ignored in the loss (`torch.nn.functional.cross_entropy`, `ignore_index`)."""


def replace_loss_functions(site: Site, loss: Callable[..., torch.Tensor], *names: str) -> None:
    """Replace these functions by `loss`, if transformers' table has them."""
    from transformers.loss import loss_utils

    present = {name: loss for name in names if name in loss_utils.LOSS_MAPPING}
    site.replace_items(loss_utils.LOSS_MAPPING, present)
    used = getattr(site.base, "loss_type", None)
    if used is not None and used not in present:
        text = f"{type(site.base).__name__} computes its loss with {used}, which this loss path does not replace"
        site.note(Note(kind="warning", key="loss_path", text=text))


def replace_loss(site: Site, run: Callable[..., Any]) -> None:
    """Replace the model's forward by `run(original, labels, num_items, kwargs)` for calls with labels."""
    original = site.base.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.pop("labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        if labels is None:
            return original(*args, **kwargs)
        return run(original, labels, num_items, kwargs)

    site.replace_forward(site.base, forward)


def with_loss(outputs: Any, loss: torch.Tensor) -> Any:
    """The model's outputs with another loss."""
    return type(outputs)(**{**outputs, "loss": loss})
