"""GaLore and Q-GaLore: AdamW and Adafactor in a low-rank subspace of the gradient."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.bnb import managed_memory_on_meta, own_registries
from axmem_trace.training.optimizers.factored import GaLoreAdafactor
from axmem_trace.training.optimizers.low_rank import (
    known_projection,
    low_rank_groups,
    project,
    project_back,
    side_of,
    singular_basis,
    step_in_backward,
)
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import ParamGroups, Request, to_bool
from axmem_trace.training.optimizers.traced import TracedOptimizer


class GaLoreAdamW(RebuiltOptimizer):
    """galore_torch 1.0, adamw.py, `AdamW.step`: for each tensor, two low-rank states in the gradient's dtype, the
    basis, and a full-size update (the product and a scaled copy of it)."""

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            gradient = parameter.grad
            assert gradient is not None
            if "rank" in group:
                gradient = project(gradient, state, group)
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(gradient)
                state["exp_avg_sq"] = torch.zeros_like(gradient)
            state["exp_avg"].mul_(DECAY).add_(gradient, alpha=1 - DECAY)
            state["exp_avg_sq"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            denominator = state["exp_avg_sq"].sqrt().add_(EPS)
            update = state["exp_avg"] / denominator
            if "rank" in group:
                update = project_back(update, state, group)
            parameter.add_(update, alpha=-LR)
            if group["weight_decay"] > 0:
                parameter.add_(parameter, alpha=-LR * group["weight_decay"])


def quantised_basis(state: dict[str, Any]) -> torch.Tensor:
    """Q-GaLore's basis in floating point (q_galore_torch 1.0, q_galore_projector.py, `project`)."""
    codes, scales, zeros, shape = (state[key] for key in ("basis", "basis_scales", "basis_zeros", "basis_shape"))
    return (scales * (codes.to(scales.dtype) - zeros)).reshape(shape)


def quantise_basis(basis: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    """q_galore_projector.py, `_quantize`: one byte per element for each value of `proj_bits`, with a scale and a zero
    point per group in the basis' dtype.

    Raises:
        ConfigError: the basis cannot be divided into groups; the library refuses it.
    """
    size = group["quant_group_size"]
    state["basis_shape"] = basis.shape
    if size > 0:
        if basis.nelement() % size:
            raise ConfigError(
                f"a projection of {tuple(basis.shape)} cannot be divided into groups of {size}",
                key="qgalore_proj_group_size",
                value=size,
            )
        basis = basis.reshape(-1, size)
    highest, lowest = basis.amax(dim=1, keepdim=True), basis.amin(dim=1, keepdim=True)
    scales = (highest - lowest).clamp(min=1e-5) / (2 ** group["quant_n_bit"] - 1)
    zeros = (-torch.round(lowest / scales)).clamp_(0, 2 ** group["quant_n_bit"] - 1)
    torch.isnan(scales).sum()
    torch.isnan(basis).sum()
    codes = torch.clamp(torch.round(basis / scales) + zeros, 0, 2 ** group["quant_n_bit"] - 1).to(torch.uint8)
    state.update(basis=codes, basis_scales=scales, basis_zeros=zeros)


def project_quantised(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """q_galore_projector.py, `GaLoreProjector.project` with `proj_type="std"`, the only one it has."""
    side = side_of(gradient.shape, "std")
    if "basis" not in state:
        basis = singular_basis(gradient, group["rank"], side)
        state["past_vector"] = (basis[:1, :] if side == "right" else basis[:, :1]).clone().flatten()
        if group["quant"]:
            quantise_basis(basis, group, state)
        else:
            state["basis"] = basis
        del basis
    basis = quantised_basis(state) if group["quant"] else state["basis"]
    return torch.matmul(gradient, basis.t()) if side == "right" else torch.matmul(basis.t(), gradient)


def project_back_quantised(update: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    """q_galore_projector.py, `GaLoreProjector.project_back`."""
    basis = quantised_basis(state) if group["quant"] else state["basis"]
    tall = update.shape[0] >= update.shape[1]
    return (torch.matmul(update, basis) if tall else torch.matmul(basis, update)) * 1.0


@lru_cache(maxsize=1)
def projected_adamw_8bit() -> Any:
    """bitsandbytes' blockwise AdamW on projected gradients: galore_torch 1.0, adamw8bit.py, and q_galore_torch 1.0,
    q_galore_adamw8bit.py, `AdamW8bit.step`. During the step, a low-rank tensor replaces the weight. So the weight has a
    new storage after each step."""
    from bitsandbytes.optim.optimizer import Optimizer2State

    class ProjectedAdamW8bit(Optimizer2State):
        def __init__(self, groups: ParamGroups, *, quantised: bool, **kwargs: Any) -> None:
            super().__init__("adam", groups, optim_bits=8, **kwargs)
            self._project = project_quantised if quantised else project
            self._project_back = project_back_quantised if quantised else project_back

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for gindex, group in enumerate(self.param_groups):
                for pindex, parameter in enumerate(group["params"]):
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    if "rank" in group:
                        gradient = self._project(parameter.grad, state, group)
                        weight = parameter.data.clone()
                        parameter.data = gradient.clone().to(parameter.dtype).to(parameter.device)
                        parameter.data.zero_()
                        parameter.grad = gradient
                    if "state1" not in state:
                        self.init_state(group, parameter, gindex, pindex)
                    self.prefetch_state(parameter)
                    self.update_step(group, parameter, gindex, pindex)
                    if "rank" in group:
                        parameter.data = weight.add_(self._project_back(parameter.data, state, group))
                        if group["weight_decay"] > 0:
                            parameter.data.add_(parameter.data, alpha=-LR)

        def update_step(self, group: Any, parameter: Any, gindex: int, pindex: int) -> None:
            """Computes the weight's norm, because of its temporaries. Its value is not passed on: meta has no
            values."""
            limit, self.args.max_unorm = self.args.max_unorm, 0.0
            if limit > 0 and self.state[parameter]["state1"].dtype == torch.float32:
                torch.norm(parameter.data.float())
            super().update_step(group, parameter, gindex, pindex)
            self.args.max_unorm = limit

    return ProjectedAdamW8bit


def build_galore(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_galore_optimizer`.

    With bitsandbytes 0.50, galore_torch's positional argument `percentile_clipping=100` is received as `max_unorm`.
    This adds one fp32 scalar for each tensor, and an fp32 copy of the weight of each small tensor during its step.
    """
    if request.name == "galore_adafactor_layerwise":
        raise ConfigError(
            "galore_adafactor_layerwise cannot train: transformers leaves relative_step on, which "
            "Adafactor refuses together with a learning rate",
            key="optimizer",
            value=request.name,
            remedy="use galore_adafactor or galore_adamw_layerwise",
        )
    groups = low_rank_groups(
        request,
        {
            "rank": request.arg("rank", 128, int),
            "update_proj_gap": request.arg("update_proj_gap", 200, int),
            "proj_type": known_projection(request, str(request.args.get("proj_type", "std"))),
        },
    )
    note_decomposition(request)
    make, kwargs = _galore_class(request)
    if request.name.endswith("_layerwise"):
        return request.hooked(step_in_backward(request, groups, make), **kwargs)
    return request.traced(make(groups), **kwargs)


def _galore_class(request: Request) -> tuple[Any, dict[str, Any]]:
    if "8bit" in request.name:
        make = partial(projected_adamw_8bit(), quantised=False, max_unorm=100, skip_zeros=True)
        return _in_own_registries(make), {"around_step": managed_memory_on_meta, "replaces_parameters": True}
    return (GaLoreAdafactor if "adafactor" in request.name else GaLoreAdamW), {}


def _in_own_registries(make: Any) -> Any:
    def build(groups: ParamGroups) -> torch.optim.Optimizer:
        with own_registries():
            optimizer: torch.optim.Optimizer = make(groups)
            return optimizer

    return build


def note_decomposition(request: Request) -> None:
    """Adds a note on steps that decompose a gradient."""
    request.note(
        "ruled",
        "projects and steps as galore_torch 1.0 (q_galore_torch 1.0 for Q-GaLore); the first step "
        "decomposes each gradient in fp32, as every update_proj_gap-th does",
    )


def build_q_galore(request: Request) -> TracedOptimizer:
    """axolotl, core/builders/base.py, `_configure_optimizer`, and utils/optimizers/qgalore.py,
    `build_qgalore_param_groups`: 2-D weights whose name contains a target are projected; weights keep their dtype."""
    extra = request.extra
    targets = request.recipe.optimizer.target_modules or ("attn", "mlp")
    if isinstance(targets, str):
        targets = tuple(targets)  # axolotl iterates over the letters of the text
    projected = [p for name, p in request.trainable if p.ndim == 2 and any(target in name for target in targets)]
    if not projected:
        raise ConfigError(
            "no parameter matches optim_target_modules, which Q-GaLore projects",
            key="optim_target_modules",
            value=request.recipe.optimizer.target_modules,
        )
    chosen = {id(parameter) for parameter in projected}
    plain = [parameter for _, parameter in request.trainable if id(parameter) not in chosen]
    projection = {
        "rank": int(extra.get("qgalore_rank") or 256),
        "quant": to_bool(extra.get("qgalore_proj_quant", True)),
        "quant_n_bit": int(extra.get("qgalore_proj_bits") or 4),
        "quant_group_size": int(extra.get("qgalore_proj_group_size") or 256),
    }
    note_decomposition(request)
    make = _in_own_registries(partial(projected_adamw_8bit(), quantised=True, weight_decay=request.weight_decay))
    groups: ParamGroups = [{"params": projected, **projection}, {"params": plain}]
    return request.traced(
        make([group for group in groups if group["params"]]),
        around_step=managed_memory_on_meta,
        replaces_parameters=True,
    )
