"""Gradient clipping and fp16 loss scaling, as accelerate does them on one GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from axmem_trace.training.optimizers.meta_as_cuda import meta_as_cuda


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clips as `Accelerator.clip_grad_norm_` does on one GPU: `torch.nn.utils.clip_grad_norm_`, with foreach.

    With `max_norm` 0 or infinity transformers still computes the norm, to log it (transformers/trainer.py,
    `_get_grad_norm`), and multiplies by a coefficient of one.

    Returns:
        The total norm, a 0-d meta tensor that the Trainer holds until the next step.
    """
    with meta_as_cuda():
        return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm if max_norm > 0 else math.inf)


class GradientScaler:
    """The tensors of `torch.amp.GradScaler` on CUDA, which refuses to work without a GPU.

    Source: torch/amp/grad_scaler.py. The scale and the growth tracker are made by the first `scale`; `unscale` makes
    the inverse in double and in float, and one `found_inf` per optimizer and device, kept until `update`.
    """

    def __init__(self) -> None:
        self._scale: torch.Tensor | None = None
        self._growth_tracker: torch.Tensor | None = None
        self._found_inf: torch.Tensor | None = None

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss` times the scale (`GradScaler.scale`)."""
        if self._scale is None:
            self._scale = torch.full((), 65536.0, dtype=torch.float32, device=loss.device)
            self._growth_tracker = torch.full((), 0, dtype=torch.int32, device=loss.device)
        return loss * self._scale.to(device=loss.device, non_blocking=True)

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale, in place, one kernel per dtype (`GradScaler._unscale_grads_`)."""
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        if self._scale is None or not by_dtype:
            return
        inverse = self._scale.double().reciprocal().float()
        self._found_inf = torch.full((), 0.0, dtype=torch.float32, device=inverse.device)
        for gradients in by_dtype.values():
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found_inf, inverse)

    def update(self) -> None:
        """Adjusts the scale in place after the step (`GradScaler.update`)."""
        self._found_inf = None

    def state_tensors(self) -> Sequence[torch.Tensor]:
        """The scale and the growth tracker, once made."""
        return [tensor for tensor in (self._scale, self._growth_tracker) if tensor is not None]
