"""GrokAdamW, whose states are in host memory."""

from __future__ import annotations

import torch

from axmem_trace.training.optimizers.outside_gpu import empty_outside_gpu
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


class GrokAdamW(RebuiltOptimizer):
    """grokadamw 0.1.2, grokadamw.py, `GrokAdamW._update_group`: three states in the parameter's dtype **on the host**,
    copied to the GPU and back for each tensor in turn."""

    def _update(self) -> None:
        for _, parameter, state in self._with_gradient():
            gradient = parameter.grad
            assert gradient is not None
            if not state:
                for key in ("exp_avg", "exp_avg_sq", "grok_ema"):
                    state[key] = empty_outside_gpu(parameter.shape, parameter.dtype, "cpu")
            mean, square = torch.empty_like(parameter), torch.empty_like(parameter)
            average = torch.empty_like(parameter)
            torch.nn.utils.clip_grad_norm_(parameter, 1.0)
            average.mul_(DECAY).add_(gradient, alpha=1 - DECAY)
            amplified = gradient + 2.0 * average
            mean.mul_(DECAY).add_(amplified, alpha=1 - DECAY)
            square.mul_(DECAY).addcmul_(amplified, amplified, value=1 - DECAY)
            parameter.mul_(DECAY)
            parameter.addcdiv_(mean, square.sqrt().add_(EPS), value=-LR)


def build_grokadamw(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_grokadamw`."""
    request.note(
        "ruled",
        "GrokAdamW keeps its three states in host memory and copies them to the GPU tensor by tensor "
        "(grokadamw 0.1.2, grokadamw.py, _update_group)",
    )
    return request.traced(GrokAdamW(request.groups))
