"""Grokfast: before each optimizer step, gradients are amplified by their moving average, which is kept.

Source: axolotl 0.19 `integrations/grokfast/__init__.py` (`on_pre_optimizer_step`, after clipping) and `optimizer.py`
`gradfilter_ema`. It is active if its plugin is listed.
"""

from __future__ import annotations

import torch
from torch import nn

from axmem_trace.tracing.recorder import Recorder

_ALPHA, _LAMB = 0.98, 2.0
"""Placeholders: their values do not change memory."""


class GradientAverage:
    """The callback's `grads`, by parameter name, in the gradient's dtype."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._averages: dict[str, torch.Tensor] | None = None

    @torch.no_grad()
    def amplify(self, model: nn.Module) -> None:
        """`gradfilter_ema`: the first averages are the gradients themselves. They stay alive until they are
        replaced."""
        named = [
            (name, each) for name, each in model.named_parameters() if each.requires_grad and each.grad is not None
        ]
        if self._averages is None:
            self._averages = {name: each.grad.data.detach() for name, each in named if each.grad is not None}
        averages = self._averages
        for name, parameter in named:
            assert parameter.grad is not None
            module = name.rpartition(".")[0]
            averages[name] = averages[name] * _ALPHA + parameter.grad.data.detach() * (1 - _ALPHA)
            self.recorder.register(averages[name], role="optimizer", module=module)
            parameter.grad.data = parameter.grad.data + averages[name] * _LAMB
            self.recorder.register(parameter.grad, role="gradient", module=module)
