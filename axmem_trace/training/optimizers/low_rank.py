"""Low-rank projection of gradients: GaLore's projector, and which parameters transformers projects."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.notes import RefusalNote
from axmem_trace.training.optimizers.request import ParamGroups, Request

PROJECTIONS = ("std", "reverse_std", "right", "left", "full")


def side_of(shape: torch.Size, kind: str) -> str:
    """Which side of an (R, C) gradient is projected (galore_torch 1.0, galore_projector.py, `project`)."""
    if kind in ("right", "left", "full"):
        return kind
    tall = shape[0] >= shape[1]
    return "right" if tall == (kind == "std") else "left"


def project(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """GaLore's projection of an (R, C) gradient to rank `group["rank"]` (galore_projector.py, `GaLoreProjector`).

    The first step makes the basis by a singular value decomposition and keeps it in `state["ortho_matrix"]`. Later
    decompositions (every `update_proj_gap` steps) make the same allocations again.
    """
    side = side_of(gradient.shape, group["proj_type"])
    if "ortho_matrix" not in state:
        state["ortho_matrix"] = singular_basis(gradient, group["rank"], side)
    basis = state["ortho_matrix"]
    if side == "right":
        return torch.matmul(gradient, basis.t())
    if side == "left":
        return torch.matmul(basis.t(), gradient)
    return torch.matmul(basis[0].t(), gradient) @ basis[1].t()


def project_back(update: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """The full-size form of a low-rank update (`GaLoreProjector.project_back`): the product, then a scaled copy of it."""
    basis, kind = state["ortho_matrix"], group["proj_type"]
    if kind == "full":
        return (torch.matmul(basis[0], update) @ basis[1]) * 1.0
    tall = update.shape[0] >= update.shape[1] if kind == "std" else update.shape[0] > update.shape[1]
    right = tall if kind in ("std", "reverse_std") else kind == "right"
    full = torch.matmul(update, basis) if right else torch.matmul(basis, update)
    return full * 1.0


def singular_basis(gradient: torch.Tensor, rank: int, side: str) -> Any:
    """`GaLoreProjector.get_orthogonal_matrix`: works in fp32, with a product that is made and then dropped.

    For an fp32 gradient the basis is a view, so the whole matrix of singular vectors stays alive.
    """
    matrix = gradient.data.float() if gradient.dtype != torch.float32 else gradient.data
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if side == "right":
        _unused = torch.matmul(left[:, :rank], torch.diag(values[:rank]))
        return _as(right[:rank, :], gradient.dtype)
    if side == "left":
        _unused = torch.matmul(torch.diag(values[:rank]), right[:rank, :])
        return _as(left[:, :rank], gradient.dtype)
    return [_as(left[:, :rank], gradient.dtype), _as(right[:rank, :], gradient.dtype)]


def _as(basis: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return basis if dtype == torch.float32 else basis.type(dtype)


def random_basis(gradient: torch.Tensor, rank: int, side: str) -> torch.Tensor:
    """apollo_torch 1.0.3, random_projector.py, `GradientProjector.get_orthogonal_matrix`: a random normal matrix in
    fp32, and an fp32 copy of the gradient, from which only the shape is used."""
    half = gradient.dtype != torch.float32
    matrix = gradient.data.float() if half else gradient.data
    shape = (matrix.shape[0], rank) if side == "left" else (rank, matrix.shape[1])
    basis = torch.randn(shape, device=matrix.device, dtype=matrix.dtype) / math.sqrt(rank)
    return basis.type(gradient.dtype) if half else basis


def low_rank_groups(request: Request, projection: dict[str, Any]) -> ParamGroups:
    """transformers/trainer_optimizer.py, `_setup_low_rank_optimizer`: the weights of targeted `nn.Linear`s are
    projected, all others are not. There are no groups by weight decay.

    Raises:
        ConfigError: no `optim_target_modules`, or they match no linear layer.
    """
    targets = request.recipe.optimizer.target_modules
    if not targets:
        raise ConfigError(
            f"{request.name} needs optim_target_modules",
            key="optim_target_modules",
            accepted="module names, a regular expression, or all_linear",
            remedy="name the linear layers whose gradients are projected",
        )
    names = {f"{name}.weight" for name in _targeted_linears(request.module, targets)}
    if not names:
        raise ConfigError(
            f"no linear layer matches optim_target_modules, which {request.name} projects",
            key="optim_target_modules",
            value=targets,
        )
    named = list(request.module.named_parameters())
    return [
        {"params": [parameter for name, parameter in named if name not in names]},
        {"params": [parameter for name, parameter in named if name in names], **projection},
    ]


def _targeted_linears(module: nn.Module, targets: Any) -> list[str]:
    from transformers.trainer_utils import check_target_module_exists

    everything = isinstance(targets, str) and targets.replace("_", "-") == "all-linear"
    wanted = targets if isinstance(targets, str) else list(targets)
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and (everything or check_target_module_exists(wanted, name))
    ]


def known_projection(request: Request, kind: str) -> str:
    """Returns `kind` if GaLore supports it.

    Raises:
        ConfigError: GaLore does not support it.
    """
    if kind not in PROJECTIONS:
        raise ConfigError("unknown projection", key="optim_args.proj_type", value=kind, accepted=", ".join(PROJECTIONS))
    return kind


def step_in_backward(request: Request, groups: ParamGroups, make: Any) -> list[torch.optim.Optimizer]:
    """Layer-wise updates: one optimizer for each parameter. A hook runs it as soon as the gradient is complete, and
    drops the gradient (`_setup_low_rank_optimizer`).

    Args:
        request: its gradient accumulation is checked.
        groups: the parameter groups. Each parameter gets a separate group with the keys of its group here.
        make: makes an optimizer from a list with one group.

    transformers refuses gradient accumulation with it, so the run is then impossible (`_setup_low_rank_optimizer`). In
    the figures, each micro-batch updates the parameters separately, because its gradients are dropped immediately.
    """
    if request.recipe.batch.gradient_accumulation_steps != 1:
        text = f"the run stops: transformers refuses {request.name} with gradient accumulation (in the figures each "
        text += "micro-batch steps by itself)"
        key = "gradient_accumulation_steps"
        request.notes.append(RefusalNote(key=key, text=text, remedy=f"set `{key}: 1`"))
    optimizers: list[torch.optim.Optimizer] = []
    for group in groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                optimizers.append(make([{**group, "params": [parameter]}]))
                parameter.register_post_accumulate_grad_hook(_stepper(optimizers[-1]))
    return optimizers


def _stepper(optimizer: torch.optim.Optimizer) -> Any:
    def step(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            optimizer.step()
            parameter.grad = None

    return step
