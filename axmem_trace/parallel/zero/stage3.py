"""ZeRO-3: weights, gradients and fp32 copies are sharded.

Source: deepspeed 0.19.8 `runtime/zero/stage3.py` `DeepSpeedZeroOptimizer_Stage3`, `runtime/engine.py` `backward`, `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors

from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.zero import norms
from axmem_trace.parallel.zero.gathering import gather_by_hooks
from axmem_trace.parallel.zero.parts import Part, Parts
from axmem_trace.parallel.zero.scattered import Scattered
from axmem_trace.parallel.zero.stepping import Stepping, without_boundary
from axmem_trace.parallel.zero.sub_groups import SubGroup, make_sub_groups
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Sizes:
    """Settings in numbers of elements; "auto" is already replaced."""

    bucket: int
    prefetch: int
    persistence: int


class Stage3:
    """The engine of one rank.

    Args:
        parts: the part of every parameter of the model.
        is_leaf: returns whether a module's parameters are gathered together with those of all modules inside it.
    """

    def __init__(
        self,
        recipe: Recipe,
        recorder: Recorder,
        stepping: Stepping,
        model: nn.Module,
        parts: Parts,
        *,
        sizes: Sizes,
        is_leaf: Callable[[nn.Module], bool],
        device: torch.device,
    ) -> None:
        zero = recipe.parallel.zero
        self._recipe, self._zero, self._recorder, self._stepping, self._device = (
            recipe,
            zero,
            recorder,
            stepping,
            device,
        )
        self._parts = parts
        self._host = HostMemory(recorder, pins=zero.pins_optimizer)
        self.persistent, self._coordinator = gather_by_hooks(
            model,
            parts,
            zero,
            prefetch=sizes.prefetch,
            persistence=sizes.persistence,
            is_leaf=is_leaf,
            device=device,
        )
        self._has_overflowed = torch.zeros(1, dtype=torch.bool, device=device)
        self.sub_groups, self.weights = make_sub_groups(zero, recorder, stepping, parts, self._host, device)
        self._dtype = self.sub_groups[0].flat.dtype
        self._model_dtype = getattr(torch, recipe.precision.load_dtype)
        self._host_gradients = self._first_gradients()
        self._scattered = self._make_scattered(sizes.bucket)
        self._watch(model, is_leaf)

    # -- making it ----------------------------------------------------------------------------------------------------

    def _first_gradients(self) -> list[torch.Tensor]:
        """`initialize_optimizer_states`: zeros for the largest group on the GPU; on the host, zeros for each group,
        which are kept."""
        largest = max(group.elements for group in self.sub_groups)
        if not self._zero.offload_optimizer:
            zeros = torch.zeros(largest, dtype=torch.float32, device=self._device)
            del zeros
            return []
        gradients = [self._host.empty(group.elements, torch.float32, role="gradient") for group in self.sub_groups]
        for group, gradient in zip(self.sub_groups, gradients, strict=True):
            group.master.grad = gradient
        return gradients

    def _make_scattered(self, bucket: int) -> Scattered:
        zero = self._zero
        every = [part for group in self.sub_groups for part in group.parts]
        communication = getattr(torch, zero.communication_dtype) if zero.communication_dtype else self._model_dtype
        scattered = Scattered(
            zero,
            self._recorder,
            sums := {},
            bucket_elements=bucket,
            dtype=self._dtype,
            communication_dtype=communication,
            device=self._device,
            send=self._send_to_host if zero.offload_optimizer else None,
        )
        elements = sum(part.elements for part in every)
        if zero.offload_optimizer:
            whole = self._host.empty(elements, self._model_dtype, role="gradient")
        else:
            whole = torch.zeros(elements, dtype=self._model_dtype, device=self._device)
            self._recorder.register(whole, role="gradient")
        self._sum, begin = whole, 0
        for part in every:
            sums[part] = whole.narrow(0, begin, part.elements)
            begin += part.elements
        self._sums = sums
        return scattered

    def _watch(self, model: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> None:
        """`create_reduce_and_remove_grad_hooks`: each trainable parameter is gathered for a short time."""
        below = {
            id(parameter): module for module in model.modules() if is_leaf(module) for parameter in module.parameters()
        }
        of_leaf: dict[nn.Module, list[Part]] = {}
        for group in self.sub_groups:
            for part in group.parts:
                self._parts.gather_now([part])
                leaf = below.get(id(part.parameter))
                if leaf is None:
                    self._scattered.watch([part])
                else:
                    of_leaf.setdefault(leaf, []).append(part)
                self._parts.release(part)
        for leaf, parts in of_leaf.items():
            leaf.register_full_backward_hook(self._leaf_hook(parts))

    def _leaf_hook(self, parts: Sequence[Part]) -> Callable[..., None]:
        def reduce(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
            for part in parts:
                if part.parameter.grad is None:
                    part.parameter.grad = torch.zeros_like(part.parameter)
                self._scattered.collect(part)

        return reduce

    # -- what the step calls ------------------------------------------------------------------------------------------

    def without_boundary(self) -> AbstractContextManager[None]:
        """Open during every micro-batch but the last."""
        return without_boundary(self._scattered)

    def backward(self, loss: torch.Tensor) -> None:
        """`DeepSpeedEngine.backward`."""
        scaled = loss * 1.0
        scaled.backward()
        with torch.no_grad():
            self._scattered.finish()
            self._coordinator.release_leftovers()
        self._scattered.micro_step += 1

    @torch.no_grad()
    def step(self) -> torch.Tensor | None:
        """`DeepSpeedZeroOptimizer_Stage3.step`. Returns the norm of the gradients."""
        self._scattered.micro_step = 0
        self._coordinator.release_all()
        if self._dtype == torch.float16:
            self._look_for_overflow()
        norm = norms.combine([self._norm(group) for group in self.sub_groups])
        self._recorder.finish_streams()  # `is_invalid_grad_norm`
        for number, group in enumerate(self.sub_groups):
            self._step_group(number, group, norm)
        self._parts.gather_now(self.persistent)
        return norm

    def _look_for_overflow(self) -> None:
        self._has_overflowed.logical_or_(torch.isinf(self._sum).any())
        self._has_overflowed.logical_or_(torch.isnan(self._sum).any())
        flag = self._has_overflowed.clone().to(torch.uint8)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)

    def _norm(self, group: SubGroup) -> torch.Tensor:
        if self._zero.offload_optimizer:
            total = torch.zeros(1, dtype=torch.float32, device=self._device)
            dist.all_reduce(total)
            return total[0]
        found = [self._sums[part].to(torch.double).norm(2.0) for part in group.parts]
        total = torch.sum(torch.pow(torch.stack(found), 2.0))
        dist.all_reduce(total)
        total = total ** (1.0 / 2.0)
        infinite = total.isinf()
        nan = total.isnan()
        either = nan.logical_or(infinite)
        return torch.where(either, torch.full((), -1.0, device=self._device), total)

    def _step_group(self, number: int, group: SubGroup, norm: torch.Tensor) -> None:
        if self._zero.offload_optimizer:
            with self._recorder.on_host():
                self._stepping.step_on(group.group, group.master)
            return
        gradient = _flatten_dense_tensors([self._sums[part] for part in group.parts]).to(torch.float32)
        self._recorder.register(gradient, role="gradient")
        group.master.grad = gradient
        if self._max_norm > 0:
            factor = torch.clamp((norm + 1e-6) / self._max_norm, min=1.0)
            gradient.mul_(1.0 / factor)
        else:
            gradient.mul_(1.0)
        self._stepping.step_on(group.group, group.master)
        if not self._zero.offload_params:
            group.flat.data.copy_(group.master.data)
        group.master.grad = None

    @property
    def _max_norm(self) -> float:
        said = self._zero.gradient_clipping
        return self._recipe.optimizer.max_grad_norm if said < 0 else said

    def _send_to_host(self, part: Part, gradient: torch.Tensor) -> None:
        """`_offload_grad_partition_at_boundary`: computes the gradient's norm in fp64, and copies the gradient to the
        host in fp32."""
        total: torch.Tensor | None = None
        for piece in gradient.view(-1).split(250_000_000):
            square = piece.data.to(torch.double).norm(2) ** 2.0
            total = square if total is None else total + square
        wide = gradient.to(torch.float32)
        del wide
