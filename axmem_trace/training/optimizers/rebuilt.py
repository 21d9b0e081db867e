"""The base of optimizers that are rebuilt here because their packages are no dependency.

Each rebuilt class runs the operators that the package's `step` runs, in its order, over the same local variables: a
temporary lives until its name is bound again, in the next turn of the loop, and that is part of the peak. So their
loops are written out flat, as the originals are. Numbers play no part: hyperparameters that move no memory are
constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LR, DECAY, EPS = 1e-3, 0.9, 1e-8
"""Placeholders for learning rate, betas and epsilon."""


class RebuiltOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose `step` is `_update` without autograd."""

    def __init__(self, groups: Any, **defaults: Any) -> None:
        super().__init__(groups, {"lr": LR, "weight_decay": 0.0, **defaults})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the gradients as they are."""
        self._update()

    def _update(self) -> None:
        raise NotImplementedError

    def _with_gradient(self) -> Iterator[tuple[dict[str, Any], nn.Parameter, dict[str, Any]]]:
        """Group, parameter and state of each parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter, self.state[parameter]
