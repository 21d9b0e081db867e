"""Optimizers with a factored second moment: CAME, and GaLore's Adafactor."""

from __future__ import annotations

import torch

from axmem_trace.kernels.card import HALF
from axmem_trace.training.optimizers.low_rank import project, project_back
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


def root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    """fairseq's `_rms`: a 0-d tensor."""
    return tensor.norm(2) / (tensor.numel() ** 0.5)


def inverse_root(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """fairseq's `_approx_sq_grad`: the factored second moment to the power of -1/2.

    Args:
        rows: (..., R), columns: (..., C).

    Returns:
        (..., R, C), a new tensor.
    """
    row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    column_factor = columns.unsqueeze(-2).rsqrt()
    return torch.mul(row_factor, column_factor)


def add_factors(state: dict[str, torch.Tensor], name: str, like: torch.Tensor) -> None:
    """Adds row and column sums for a (..., R, C) tensor. They are made on the CPU and moved, as in the libraries."""
    state[f"{name}_row"] = torch.zeros(like.shape[:-1]).to(like)
    state[f"{name}_col"] = torch.zeros(like.shape[:-2] + like.shape[-1:]).to(like)


def update_factors(state: dict[str, torch.Tensor], name: str, square: torch.Tensor) -> torch.Tensor:
    """Updates the factors with the means of `square`; returns their `inverse_root`."""
    state[f"{name}_row"].mul_(DECAY).add_(square.mean(dim=-1), alpha=1 - DECAY)
    state[f"{name}_col"].mul_(DECAY).add_(square.mean(dim=-2), alpha=1 - DECAY)
    return inverse_root(state[f"{name}_row"], state[f"{name}_col"])


class Came(RebuiltOptimizer):
    """came_pytorch 0.1.3, CAME.py, `CAME.step`: a full fp32 first moment, a factored second moment and a factored
    instability. All temporaries are fp32; tensors are updated one after the other."""

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            gradient = parameter.grad
            assert gradient is not None
            if gradient.dtype in HALF:
                gradient = gradient.float()
            factored = gradient.ndim >= 2
            if not state:
                state["exp_avg"] = torch.zeros_like(gradient)
                if factored:
                    add_factors(state, "exp_avg_sq", gradient)
                    add_factors(state, "exp_avg_res", gradient)
                else:
                    state["exp_avg_sq"] = torch.zeros_like(gradient)
            state["RMS"] = root_mean_square(parameter.data)
            update = (gradient**2) + EPS
            if factored:
                update = update_factors(state, "exp_avg_sq", update)
                update.mul_(gradient)
            else:
                state["exp_avg_sq"].mul_(DECAY).add_(update, alpha=1 - DECAY)
                update = state["exp_avg_sq"].rsqrt().mul_(gradient)
            update.div_(root_mean_square(update).clamp_(min=1.0))
            state["exp_avg"].mul_(DECAY).add_(update, alpha=1 - DECAY)
            residual = (update - state["exp_avg"]) ** 2 + EPS
            if factored:
                approximation = update_factors(state, "exp_avg_res", residual)
                update = approximation.mul_(state["exp_avg"])
            else:
                update = state["exp_avg"].clone()
            if group["weight_decay"] != 0:
                parameter.data.add_(parameter.data, alpha=-group["weight_decay"] * LR)
            update.mul_(LR)
            parameter.data.add_(-update)


class GaLoreAdafactor(RebuiltOptimizer):
    """galore_torch 1.0, adafactor.py, `Adafactor.step`: transformers' Adafactor on the projected fp32 gradient.

    The projection of an fp32 gradient is a view of the whole singular basis, so the whole basis stays alive.
    """

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            gradient = parameter.grad
            assert gradient is not None
            if gradient.dtype in HALF:
                gradient = gradient.float()
            if "rank" in group:
                gradient = project(gradient, state, group)
            factored = gradient.ndim >= 2
            if "RMS" not in state:
                if factored:
                    add_factors(state, "exp_avg_sq", gradient)
                else:
                    state["exp_avg_sq"] = torch.zeros_like(gradient)
            weight: torch.Tensor = parameter
            if parameter.dtype in HALF:
                weight = weight.float()
            state["RMS"] = root_mean_square(weight)
            update = (gradient**2) + EPS
            if factored:
                update = update_factors(state, "exp_avg_sq", update)
                update.mul_(gradient)
            else:
                state["exp_avg_sq"].mul_(DECAY).add_(update, alpha=1 - DECAY)
                update = state["exp_avg_sq"].rsqrt().mul_(gradient)
            update.div_(root_mean_square(update).clamp_(min=1.0))
            update.mul_(LR)
            if "rank" in group:
                update = project_back(update, state, group)
            if group["weight_decay"] != 0:
                weight.add_(weight, alpha=-group["weight_decay"] * LR)
            weight.add_(-update)
            if parameter.dtype in HALF:
                parameter.copy_(weight)


def build_came(request: Request) -> TracedOptimizer:
    """axolotl, core/builders/base.py, `_configure_optimizer`."""
    request.note("ruled", "steps as came_pytorch 0.1.3, CAME.py, CAME.step: fp32 states and temporaries")
    return request.traced(Came(request.groups))
