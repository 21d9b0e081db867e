"""Layers whose outputs one function computes together, while the model still calls each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.site import Site


def replace_together(
    site: Site, layers: Sequence[nn.Module], compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
) -> None:
    """The first layer computes the outputs of all layers. Each other layer returns its output when it is called.

    Args:
        compute: the outputs of all layers, in order, from their common input.
    """
    waiting: dict[int, torch.Tensor] = {}

    def compute_all(self: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        first, *others = compute(x)
        waiting.update(enumerate(others, 1))
        del others
        return first

    def make_handing_over(place: int) -> Any:
        return lambda self, x, *args, **kwargs: waiting.pop(place)

    site.replace_forward(layers[0], compute_all)
    for place in range(1, len(layers)):
        site.replace_forward(layers[place], make_handing_over(place))
