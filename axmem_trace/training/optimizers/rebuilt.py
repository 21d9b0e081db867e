"""The base of optimizers that are rebuilt here because their packages are not dependencies.

Each rebuilt class runs the same operators as the package's `step`, in the same order, with the same local variables. A
temporary is alive until its variable is assigned again, in the next iteration of the loop, and this is part of the
peak. So the loops are written without helper functions, as in the originals. Values do not matter: hyperparameters that
do not change memory are constants.
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
        """One step with the current gradients."""
        self._update()

    def _update(self) -> None:
        raise NotImplementedError

    def _with_gradient(self) -> Iterator[tuple[dict[str, Any], nn.Parameter, dict[str, Any]]]:
        """Group, parameter and state of each parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter, self.state[parameter]
