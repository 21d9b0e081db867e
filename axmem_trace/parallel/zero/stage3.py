"""ZeRO-3: weights, gradients and fp32 copies are divided.

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
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder


@dataclass(eq=False)
class SubGroup:
    """Parts that the optimizer steps on together.

    Attributes:
        group: the optimizer's, by number.
        flat: the parts in the model's dtype.
        master: the same in fp32.
    """

    parts: list[Part]
    group: int
    flat: torch.Tensor
    master: nn.Parameter

    @property
    def elements(self) -> int:
        """Of all its parts."""
        return sum(part.elements for part in self.parts)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Settings in elements, "auto" resolved."""

    bucket: int
    prefetch: int
    persistence: int


class Stage3:
    """The engine of one rank.

    Args:
        parts: of every parameter of the model.
        is_leaf: whether a module's parameters are gathered with those of all modules below it.
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
        self.sub_groups = self._make_sub_groups()
        self._dtype = self.sub_groups[0].flat.dtype
        self._model_dtype = getattr(torch, recipe.precision.load_dtype)
        self._host_gradients = self._first_gradients()
        self._scattered = self._make_scattered(sizes.bucket)
        self._watch(model, is_leaf)

    # -- making it ----------------------------------------------------------------------------------------------------

    def _make_sub_groups(self) -> list[SubGroup]:
        """`_create_fp16_partitions_with_defragmentation` and `_create_fp32_partitions`."""
        divided = [
            (number, parts)
            for number, parameters in enumerate(self._stepping.trained())
            for parts in _cut([self._part(each) for each in parameters], self._zero.sub_group_elements)
        ]
        flats = self._defragment(divided)
        groups: list[SubGroup] = []
        converted: torch.Tensor | None = None
        for (number, parts), flat in zip(divided, flats, strict=True):
            if self._zero.offload_optimizer:
                pageable = HostMemory(self._recorder)
                master = pageable.parameter(flat.numel(), torch.float32)
            elif self._zero.offload_params:
                converted = torch.empty(flat.numel(), dtype=torch.float32, device=self._device)
                master = nn.Parameter(converted.clone().detach())
            else:
                converted = flat.to(torch.float32)
                master = nn.Parameter(converted.clone().detach())
            self._recorder.register(master, role="optimizer", device=self._place)
            groups.append(SubGroup(parts, number, flat, master))
        del converted
        self._stepping.clear()
        return groups

    def _part(self, parameter: nn.Parameter) -> Part:
        part = self._parts.of(parameter)
        assert part is not None
        return part

    @property
    def _place(self) -> Any:
        return "cpu" if self._zero.offload_optimizer else "gpu"

    def _defragment(self, divided: Sequence[tuple[int, Sequence[Part]]]) -> list[torch.Tensor]:
        """The parts of all trained parameters in one buffer, by way of the host."""
        every = [part for _, parts in divided for part in parts]
        first = every[0].tensor
        assert first is not None
        dtype, elements = first.dtype, sum(part.elements for part in every)
        if self._zero.offload_params:
            return self._defragment_on_host(divided, dtype)
        passing = self._host.pageable(elements, dtype)
        for part in every:
            part.tensor = None
        del first
        self._recorder.empty_cache()
        whole = torch.empty(elements, dtype=dtype, device=self._device)
        del passing
        self._recorder.register(whole, role="weight")
        self.weights = [whole]
        return _distribute(whole, [parts for _, parts in divided])

    def _defragment_on_host(
        self, divided: Sequence[tuple[int, Sequence[Part]]], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """`_create_param_groups_fp16_flat_cpu_memory`: a pinned buffer for each group of the optimizer."""
        pinned = HostMemory(self._recorder, pins=True)
        by_group: dict[int, list[Sequence[Part]]] = {}
        for number, parts in divided:
            by_group.setdefault(number, []).append(parts)
        self.weights = [
            pinned.empty(sum(part.elements for parts in own for part in parts), dtype, role="weight")
            for own in by_group.values()
        ]
        pairs = zip(self.weights, by_group.values(), strict=True)
        return [flat for whole, own in pairs for flat in _distribute(whole, own)]

    def _first_gradients(self) -> list[torch.Tensor]:
        """`initialize_optimizer_states`: zeros for the largest group; on the host for each, and those stay."""
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
        """`create_reduce_and_remove_grad_hooks`: each trained parameter is gathered for a moment."""
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
        """`_offload_grad_partition_at_boundary`: its norm in fp64, and its copy in fp32."""
        total: torch.Tensor | None = None
        for piece in gradient.view(-1).split(250_000_000):
            square = piece.data.to(torch.double).norm(2) ** 2.0
            total = square if total is None else total + square
        wide = gradient.to(torch.float32)
        del wide


def _distribute(whole: torch.Tensor, divided: Sequence[Sequence[Part]]) -> list[torch.Tensor]:
    """Parts become views of the buffer; returns the view of each sub group."""
    begin = 0
    for part in (part for parts in divided for part in parts):
        part.tensor = whole.narrow(0, begin, part.elements)
        begin += part.elements
    return list(whole.split([sum(part.elements for part in parts) for parts in divided]))


def _cut(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """`_create_fp16_sub_groups`: so many elements of parts, or a little more, in each."""
    if most >= sum(part.elements for part in parts):
        return [list(parts)]
    groups: list[list[Part]] = []
    now: list[Part] = []
    for part in parts:
        now.append(part)
        if sum(each.elements for each in now) >= most or part is parts[-1]:
            groups.append(now)
            now = []
    return groups
