"""Optimizers of the AdamW family that step with multi-tensor operators: ADOPT, AdamC, schedule-free."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


class Adopt(RebuiltOptimizer):
    """axolotl, utils/optimizers/adopt.py, `_multi_tensor_adopt`: two states. From the second step on, there are two
    temporaries as large as the group: the root of the second moment, and the normalised gradient."""

    def _update(self) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
            if parameters:
                self._update_group(group, parameters)

    def _update_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        columns: list[Any] = [parameters, [parameter.grad for parameter in parameters]]
        columns += [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")]
        by_dtype: Any = self._group_tensors_by_device_and_dtype(columns)
        for (weights, gradients, means, squares, steps), _ in by_dtype.values():
            first = float(steps[0]) == 0
            torch._foreach_add_(steps, torch.tensor(1.0), alpha=1.0)
            if first:
                torch._foreach_addcmul_(squares, gradients, gradients)
                continue
            if group["weight_decay"] != 0:
                torch._foreach_add_(weights, weights, alpha=-LR * group["weight_decay"])
            roots = torch._foreach_sqrt(squares)
            torch._foreach_maximum_(roots, EPS)
            normed = torch._foreach_div(gradients, roots)
            torch._foreach_maximum_(normed, -1.0)
            torch._foreach_minimum_(normed, 1.0)
            torch._foreach_lerp_(means, normed, 1 - DECAY)
            torch._foreach_add_(weights, means, alpha=-LR)
            torch._foreach_mul_(squares, DECAY)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - DECAY)


class ScheduleFree(RebuiltOptimizer):
    """schedulefree 1.4.1, {adamw,sgd,radam}_schedulefree.py, `step` with `foreach=True`, its default.

    The states are `z`, a copy of the weights, and the second moment (not for SGD). Adam's denominator is a temporary as
    large as the group; the gradient is normalised in place. RAdam makes this temporary only when its average is long
    enough (from the sixth step on with beta2 = 0.999); here, its second step has it already.
    """

    def __init__(self, groups: Any, kind: str) -> None:
        super().__init__(groups)
        self._kind = kind
        self._steps = 0

    def _update(self) -> None:
        self._steps += 1
        adaptive = self._kind == "adamw" or (self._kind == "radam" and self._steps > 1)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["z"] = torch.clone(parameter, memory_format=torch.preserve_format)
                    if self._kind != "sgd":
                        state["exp_avg_sq"] = torch.zeros_like(parameter)
            if not parameters:
                continue
            gradients: Any = [parameter.grad for parameter in parameters]
            averages = [self.state[parameter]["z"] for parameter in parameters]
            if self._kind != "sgd":
                squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
                torch._foreach_mul_(squares, DECAY)
                torch._foreach_addcmul_(squares, gradients, gradients, value=1 - DECAY)
            if adaptive:
                denominator = torch._foreach_div(squares, DECAY)
                torch._foreach_sqrt_(denominator)
                torch._foreach_add_(denominator, EPS)
                torch._foreach_div_(gradients, denominator)
            if group["weight_decay"] != 0:
                torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])
            torch._foreach_lerp_(parameters, averages, weight=DECAY)
            torch._foreach_add_(parameters, gradients, alpha=-LR)
            torch._foreach_sub_(averages, gradients, alpha=LR)


def build_adopt(request: Request) -> TracedOptimizer:
    """axolotl, core/builders/base.py, `_configure_optimizer`."""
    request.note("ruled", "steps as axolotl's utils/optimizers/adopt.py, _multi_tensor_adopt")
    return request.traced(Adopt(request.groups))


def build_adamc(request: Request) -> TracedOptimizer:
    """axolotl, utils/optimizers/adamc.py: AdamW with another decay. Its `_multi_tensor_adamc` has the same allocating
    operators as torch's multi-tensor AdamW, so torch's class is used. With `foreach: false` in `optim_args`, it loops
    over the tensors."""
    foreach = bool(request.args.get("foreach", True))
    request.note("ruled", "allocates as torch.optim.AdamW does (axolotl, utils/optimizers/adamc.py)")
    return request.traced(torch.optim.AdamW(request.groups, lr=request.lr, foreach=foreach, **request.adam_kwargs))


def build_schedule_free(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_schedule_free_optimizer`."""
    request.note("ruled", "steps as schedulefree 1.4.1 with foreach=True")
    return request.traced(ScheduleFree(request.groups, kind=request.name.removeprefix("schedule_free_")))
