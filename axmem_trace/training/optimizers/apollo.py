"""APOLLO: AdamW's scaling factors from a low-rank projection of the gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.galore import note_decomposition
from axmem_trace.training.optimizers.low_rank import (
    known_projection,
    low_rank_groups,
    project,
    random_basis,
    side_of,
    step_in_backward,
)
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


class ApolloAdamW(RebuiltOptimizer):
    """apollo_torch 1.0.3, apollo.py, `AdamW.step`: low-rank states like GaLore's, and a random basis by default. The
    full gradient is scaled for each channel or as a whole; from the second step on, it is scaled twice (the norm-growth
    limiter)."""

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            gradient = parameter.grad
            assert gradient is not None
            if "rank" in group:
                channel = 0 if gradient.shape[0] < gradient.shape[1] else 1
                gradient = self._project(gradient, state, group)
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(gradient)
                state["exp_avg_sq"] = torch.zeros_like(gradient)
            state["exp_avg"].mul_(DECAY).add_(gradient, alpha=1 - DECAY)
            state["exp_avg_sq"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            denominator = state["exp_avg_sq"].sqrt().add_(EPS)
            update = state["exp_avg"] / denominator
            if "rank" in group:
                factor = self._factor(update, gradient, channel if group["scale_type"] == "channel" else None)
                assert parameter.grad is not None
                scaled = parameter.grad * factor
                if "scaled_grad" in state:
                    norm = torch.norm(scaled)
                    limiter = (norm / (state["scaled_grad"] + EPS)) / 1.01
                    scaled = scaled / limiter
                    state["scaled_grad"] = norm / limiter
                else:
                    state["scaled_grad"] = torch.norm(scaled)
                update = scaled
                update *= 1.0
            parameter.add_(update, alpha=-LR)
            if group["weight_decay"] > 0:
                parameter.add_(parameter, alpha=-LR * group["weight_decay"])

    @staticmethod
    def _project(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        if group["proj"] == "random" and "ortho_matrix" not in state:
            state["ortho_matrix"] = random_basis(gradient, group["rank"], side_of(gradient.shape, group["proj_type"]))
        return project(gradient, state, group)

    @staticmethod
    def _factor(update: torch.Tensor, gradient: torch.Tensor, channel: int | None) -> torch.Tensor:
        if channel is None:
            return torch.norm(update) / (torch.norm(gradient) + EPS)
        factor = torch.norm(update, dim=channel) / (torch.norm(gradient, dim=channel) + EPS)
        return factor.unsqueeze(1) if channel == 1 else factor


def build_apollo(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_apollo_optimizer`."""
    projection = {
        "rank": request.arg("rank", 128, int),
        "proj": str(request.args.get("proj", "random")),
        "scale_type": str(request.args.get("scale_type", "channel")),
        "proj_type": known_projection(request, str(request.args.get("proj_type", "std"))),
    }
    for key, accepted in {"proj": ("random", "svd"), "scale_type": ("channel", "tensor")}.items():
        if projection[key] not in accepted:
            raise ConfigError(
                f"unknown {key}", key=f"optim_args.{key}", value=projection[key], accepted=", ".join(accepted)
            )
    if projection["proj"] == "random" and projection["proj_type"] == "full":
        raise ConfigError(
            "APOLLO's random projection has no full form",
            key="optim_args.proj_type",
            value="full",
            accepted="std, reverse_std, right, left",
        )
    groups = low_rank_groups(request, projection)
    if projection["proj"] == "svd":
        note_decomposition(request)
    request.note("ruled", "steps as apollo_torch 1.0.3, apollo.py, AdamW.step")
    if request.name.endswith("_layerwise"):
        return request.hooked(step_in_backward(request, groups, partial(ApolloAdamW)))
    return request.traced(ApolloAdamW(groups))
