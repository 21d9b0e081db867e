"""torch-optimi's AdamW and StableAdamW, in the version that axolotl 0.19 pins (0.2.1)."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.card import HALF
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


class _Optimi(RebuiltOptimizer):
    """Two states in the parameter's dtype, and a Kahan compensation for half-precision parameters (optimi/adam.py,
    `Adam._init_state`: `kahan_sum=None` switches it on)."""

    stable = False

    def _update(self) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self._states(group, parameter)
            if parameters:
                self._update_group(group, parameters)

    def _update_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        raise NotImplementedError

    def _states(self, group: dict[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            if self.stable:
                state["eps_sq"] = torch.tensor(EPS, dtype=parameter.dtype, device=parameter.device)
            if group["kahan"] and parameter.dtype in HALF:
                state["kahan_comp"] = torch.zeros_like(parameter)
        return state


class OptimiAdamW(_Optimi):
    """optimi/adam.py, `_single_adam`, which axolotl selects (`foreach=False`): one temporary at a time. The gradient's
    memory is used for the weight before the step."""

    def _update_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            self._update_one(group, parameter, self.state[parameter])

    @staticmethod
    def _update_one(group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"] != 0:
            parameter.mul_(DECAY)
        state["exp_avg"].lerp_(gradient, weight=1 - DECAY)
        state["exp_avg_sq"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
        if "kahan_comp" in state:
            state["kahan_comp"].addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(EPS), value=-LR)
            gradient.copy_(parameter.detach())
            parameter.add_(state["kahan_comp"])
            state["kahan_comp"].add_(gradient.sub_(parameter))
        else:
            parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(EPS), value=-LR)


class StableAdamW(_Optimi):
    """optimi/stableadamw.py, `_foreach_stableadamw`: one temporary as large as the group (the clamped second moment).
    Other temporaries use the gradients' memory. On the GPU, there is also a squared epsilon for each parameter."""

    stable = True

    def _update_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        columns: list[Any] = [parameters, [parameter.grad for parameter in parameters]]
        columns += [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "eps_sq")]
        columns.append([state.get("kahan_comp") for state in states])
        by_dtype: Any = self._group_tensors_by_device_and_dtype(columns)
        for lists, _ in by_dtype.values():
            weights, gradients, means, squares, epsilons, kahan = lists
            torch._foreach_lerp_(means, gradients, weight=1 - DECAY)
            torch._foreach_mul_(squares, DECAY)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - DECAY)
            clamped = torch._foreach_maximum(squares, epsilons)
            torch._foreach_pow_(gradients, exponent=2)
            torch._foreach_div_(gradients, clamped)
            del clamped
            for gradient in gradients:
                gradient.mean().sqrt()
            if group["weight_decay"] != 0:
                torch._foreach_mul_(weights, DECAY)
            torch._foreach_copy_(gradients, squares)
            torch._foreach_sqrt_(gradients)
            torch._foreach_add_(gradients, EPS)
            if kahan[0] is None:
                torch._foreach_addcdiv_(weights, means, gradients, -LR)
                continue
            torch._foreach_addcdiv_(kahan, means, gradients, -LR)
            torch._foreach_copy_(gradients, weights)
            torch._foreach_add_(weights, kahan, alpha=1)
            torch._foreach_sub_(gradients, weights, alpha=1)
            torch._foreach_add_(kahan, gradients, alpha=1)


def build_optimi_adamw(request: Request) -> TracedOptimizer:
    """axolotl, core/builders/base.py, `_configure_optimizer`: `foreach=False`, Kahan summation left to the library."""
    request.note(
        "ruled",
        "steps as torch-optimi 0.2.1, optimi/adam.py, _single_adam; a third, compensating state for "
        "half-precision parameters",
    )
    return request.traced(OptimiAdamW(request.groups, kahan=request.arg("kahan_sum", True, _left_to_library)))


def build_stable_adamw(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_stable_adamw`; it reads `kahan_sum` with `bool()`. axolotl has converted
    every value to text, so any value is true."""
    request.note("ruled", "steps as torch-optimi 0.2.1, optimi/stableadamw.py, _foreach_stableadamw")
    return request.traced(
        StableAdamW(request.groups, kahan=request.arg("kahan_sum", True, lambda value: bool(str(value))))
    )


def _left_to_library(value: Any) -> bool:
    """Whether the library decides. If `optim_args` is a mapping, null is passed as None, which is the default: on for
    half precision (optimi/adam.py, `_init_state`). Any text is true, even `False`."""
    return value is None or bool(value)
