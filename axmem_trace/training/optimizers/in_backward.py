"""LOMO and AdaLomo, which update the parameters inside the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.factored import inverse_root, root_mean_square
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


class Lomo(RebuiltOptimizer):
    """lomo_optim 0.1.1, lomo.py, `Lomo.fuse_update`: no state. When a gradient is ready, the parameters whose gradients
    were accumulated before are updated with fp32 copies, and their gradients are dropped."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__([{"params": list(module.parameters())}])
        self._pending: list[nn.Parameter] = []
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._hook_of(parameter))

    def _hook_of(self, parameter: nn.Parameter) -> Any:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            self.update_pending()
            self._pending.append(parameter)
            return gradient

        return hook

    @torch.no_grad()
    def update_pending(self) -> None:
        """Updates the parameters that have a gradient. LOMO calls it again after backward, for the last parameter."""
        waiting = [parameter for parameter in self._pending if parameter.grad is None]
        for parameter in self._pending:
            if parameter.grad is not None:
                self._update_one(parameter)
        self._pending = waiting

    def _update_one(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.to(torch.float32)
        parameter.grad = None
        weight = parameter.data.to(torch.float32)
        weight.add_(gradient, alpha=-LR)
        parameter.data.copy_(weight)


class AdaLomo(Lomo):
    """lomo_optim 0.1.1, adalomo.py, `AdaLomo`: factored fp32 second moments. The constructor makes them for every
    parameter of the model, including frozen ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        for parameter in module.parameters():
            state, shape = self.state[parameter], parameter.shape
            if len(shape) == 1:
                state["exp_avg_sq"] = torch.zeros(shape[0], dtype=torch.float32, device=parameter.device)
            else:
                state["exp_avg_sq_row"] = torch.zeros(shape[0], dtype=torch.float32, device=parameter.device)
                state["exp_avg_sq_col"] = torch.zeros(shape[1], dtype=torch.float32, device=parameter.device)

    def _update_one(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        gradient = parameter.grad.to(torch.float32)
        parameter.grad = None
        gradient.div_(1024.0)
        update = (gradient**2) + EPS
        if parameter.ndim > 1:
            state["exp_avg_sq_row"].mul_(DECAY).add_(update.mean(dim=-1), alpha=1 - DECAY)
            state["exp_avg_sq_col"].mul_(DECAY).add_(update.mean(dim=-2), alpha=1 - DECAY)
            update = inverse_root(state["exp_avg_sq_row"], state["exp_avg_sq_col"])
            update.mul_(gradient)
        else:
            state["exp_avg_sq"].mul_(DECAY).add_(update, alpha=1 - DECAY)
            update = state["exp_avg_sq"].rsqrt().mul_(gradient)
        update.div_(root_mean_square(update).clamp_(min=1.0))
        weight = parameter.data.to(torch.float32)
        torch.norm(weight, 2.0)
        weight.add_(update, alpha=-LR)
        parameter.data.copy_(weight)


def build_lomo(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_lomo_optimizer`; accelerate, `Accelerator.lomo_backward`.

    Raises:
        ConfigError: AdaLomo cannot factor parameters of more than two dimensions.
    """
    if request.name == "adalomo" and any(parameter.ndim > 2 for _, parameter in request.trainable):
        raise ConfigError(
            "adalomo fails on parameters of more than two dimensions",
            key="optimizer",
            value="adalomo",
            remedy="freeze them or use lomo",
        )
    optimizer = (AdaLomo if request.name == "adalomo" else Lomo)(request.module)
    request.note(
        "ruled", "steps inside backward as lomo_optim 0.1.1; no gradient outlives its update, so nothing is clipped"
    )
    return request.hooked([optimizer], after_backward=optimizer.update_pending)
