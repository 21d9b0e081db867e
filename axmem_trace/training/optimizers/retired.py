"""Older versions of AdamW: transformers 4's own AdamW, apex's FusedAdam, torchdistx's AnyPrecisionAdamW."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request, to_bool
from axmem_trace.training.optimizers.torch_native import build_adamw
from axmem_trace.training.optimizers.traced import TracedOptimizer


class TransformersAdamW(RebuiltOptimizer):
    """transformers 4, optimization.py, `AdamW.step`: two states in the parameter's dtype, one temporary at a time."""

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            gradient = parameter.grad
            assert gradient is not None
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["exp_avg"].mul_(DECAY).add_(gradient, alpha=1 - DECAY)
            state["exp_avg_sq"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            denominator = state["exp_avg_sq"].sqrt().add_(EPS)
            parameter.addcdiv_(state["exp_avg"], denominator, value=-LR)
            if group["weight_decay"] > 0:
                parameter.add_(parameter, alpha=-LR * group["weight_decay"])


class ApexFusedAdam(RebuiltOptimizer):
    """apex/optimizers/fused_adam.py, `FusedAdam`: fp32 states for every dtype, one multi-tensor kernel without a
    workspace, and an overflow flag of one int32."""

    def _update(self) -> None:
        flags = self.state["overflow"]  # type: ignore[index]
        for _, parameter, state in self._with_gradient():
            if "flag" not in flags:
                flags["flag"] = torch.zeros(1, dtype=torch.int32, device=parameter.device)
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter.data).float()
                state["exp_avg_sq"] = torch.zeros_like(parameter.data).float()


class AnyPrecisionAdamW(RebuiltOptimizer):
    """torchdistx/optimizers/anyprecision_optimizer.py, `AnyPrecisionAdamW.step`: the dtype of each state can be chosen
    separately; with Kahan summation, there is a compensation buffer."""

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter, dtype=group["momentum_dtype"])
                state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=group["variance_dtype"])
                if group["kahan"]:
                    state["compensation"] = torch.zeros_like(parameter, dtype=group["compensation_dtype"])
            gradient = parameter.grad
            assert gradient is not None
            if group["weight_decay"]:
                parameter.data.mul_(1 - LR * group["weight_decay"])
            state["exp_avg"].mul_(DECAY).add_(gradient, alpha=1 - DECAY)
            state["exp_avg_sq"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            centred = (state["exp_avg_sq"].sqrt() / DECAY).add_(EPS, alpha=1)
            if group["kahan"]:
                state["compensation"].addcdiv_(state["exp_avg"], centred, value=-LR)
                before = parameter.detach().clone()
                parameter.data.add_(state["compensation"])
                state["compensation"].add_(before.sub_(parameter.data))
            else:
                parameter.data.addcdiv_(state["exp_avg"], centred, value=-LR)


def build_adamw_hf(request: Request) -> TracedOptimizer:
    """transformers 4's AdamW; torch's if `--assume optimizer_implementation` is set."""
    reason = request.recipe.reasons.get("optimizer.implementation")
    if reason is not None and reason.origin == "assume":
        return build_adamw(request)
    request.note("ruled", "transformers 4 stepped tensor by tensor (optimization.py, AdamW.step)")
    return request.traced(TransformersAdamW(request.groups))


def build_apex_fused(request: Request) -> TracedOptimizer:
    """apex's FusedAdam (transformers 4, trainer.py, `get_optimizer_cls_and_kwargs`)."""
    request.note("ruled", "apex keeps fp32 states and steps in place (apex/optimizers/fused_adam.py, FusedAdam)")
    return request.traced(ApexFusedAdam(request.groups))


def build_anyprecision(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_adamw_anyprecision`: fp32 states and no Kahan summation unless
    `optim_args` says otherwise."""
    kwargs = {
        "kahan": request.arg("use_kahan_summation", False, to_bool),
        "momentum_dtype": _dtype(request, "momentum_dtype", "float32"),
        "variance_dtype": _dtype(request, "variance_dtype", "float32"),
        "compensation_dtype": _dtype(request, "compensation_buffer_dtype", "bfloat16"),
    }
    request.note(
        "ruled", "states as torchdistx/optimizers/anyprecision_optimizer.py, AnyPrecisionAdamW.step, makes them"
    )
    return request.traced(AnyPrecisionAdamW(request.groups, **kwargs))


def _dtype(request: Request, key: str, default: str) -> torch.dtype:
    value: Any = getattr(torch, str(request.args.get(key, default)), None)
    if not isinstance(value, torch.dtype):
        raise ConfigError(
            f"{key} is no torch dtype",
            key="optim_args",
            value=request.args.get(key),
            accepted="float32, bfloat16, float16",
        )
    return value
