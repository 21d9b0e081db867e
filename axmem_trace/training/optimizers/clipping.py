"""Gradient clipping and fp16 loss scaling, as in accelerate on one GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from axmem_trace.training.optimizers.meta_as_cuda import meta_as_cuda


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clips like `Accelerator.clip_grad_norm_` on one GPU: with `torch.nn.utils.clip_grad_norm_` and foreach.

    With `max_norm` 0 or infinity, transformers also computes the norm, to log it (transformers/trainer.py,
    `_get_grad_norm`), and multiplies by a coefficient of one.

    Returns:
        The total norm, a 0-d meta tensor that the Trainer keeps until the next step.
    """
    parameters = list(parameters)
    with meta_as_cuda():
        by_mesh = group_by_mesh(parameters)
        if len(by_mesh) > 1:
            return _clip_each_mesh(by_mesh, max_norm)
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)


def group_by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Groups of parameters that are sharded across the same ranks in the same way. Parameters that are not sharded are
    a group too. torch's functions for lists of tensors accept only such lists.
    """
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(groups.values())


def _clip_each_mesh(by_mesh: Sequence[list[nn.Parameter]], max_norm: float) -> torch.Tensor:
    """transformers 5.20.1 `trainer.py` `_mixed_mesh_grad_norm`."""
    norms: list[torch.Tensor] = []
    for parameters in by_mesh:
        norm: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    total = torch.linalg.vector_norm(torch.stack(norms))
    if max_norm > 0 and max_norm != math.inf:
        for parameters in by_mesh:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total


class GradientScaler:
    """The tensors of `torch.amp.GradScaler` on CUDA. The class itself does not work without a GPU.

    Source: torch/amp/grad_scaler.py. The first `scale` makes the scale and the growth tracker. `unscale` makes the
    inverse in double and in float, and one `found_inf` for each optimizer and device, which is kept until `update`.
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
        """Divides the gradients by the scale, in place, with one kernel for each dtype
        (`GradScaler._unscale_grads_`)."""
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
        """The scale and the growth tracker, if they have been made."""
        return [tensor for tensor in (self._scale, self._growth_tracker) if tensor is not None]
