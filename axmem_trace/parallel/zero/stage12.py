"""ZeRO-1 and 2: gradients and fp32 copies are sharded, weights are whole on each rank.

Source: deepspeed 0.19.8 `runtime/zero/stage_1_and_2.py` `DeepSpeedZeroOptimizer`, `runtime/engine.py` `backward`, `step`,
`_take_model_step`; accelerate 1.15 `utils/deepspeed.py` `DeepSpeedEngineWrapper`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors

from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.zero import norms
from axmem_trace.parallel.zero.gradients import Gradients
from axmem_trace.parallel.zero.group import Group, aligned, flat_order, make_group
from axmem_trace.parallel.zero.layout import Layout, Slice, elements_kept
from axmem_trace.parallel.zero.stepping import Stepping, without_boundary
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder


class Stage12:
    """The engine of one rank.

    Args:
        stepping: the optimizer; its groups become this rank's fp32 partitions.
        bucket_elements: `reduce_bucket_size`.
        free_bytes: returns the free bytes of the card.
        rank: None: the rank that keeps the most gradients.
    """

    def __init__(
        self,
        recipe: Recipe,
        recorder: Recorder,
        stepping: Stepping,
        *,
        bucket_elements: int,
        device: torch.device,
        free_bytes: Callable[[], int],
        rank: int | None = None,
    ) -> None:
        zero = recipe.parallel.zero
        self._recipe, self._zero, self._recorder, self._stepping, self._device = (
            recipe,
            zero,
            recorder,
            stepping,
            device,
        )
        self._num_ranks = dist.get_world_size()
        self.rank = rank if rank is not None else self._find_worst_rank()
        self._host = HostMemory(recorder, pins=zero.pins_optimizer)
        self.groups = self._make_groups(free_bytes)
        self._dtype = self.groups[0].flat.dtype
        self._host_gradients: list[torch.Tensor] = []
        self._host_copies: list[torch.Tensor] = []
        self._make_host_buffers()
        self._accumulated: dict[int, torch.Tensor] = {}
        self._norms: dict[int, torch.Tensor] = {}
        self._gradients = Gradients(
            self.groups,
            zero,
            recorder,
            bucket_elements=bucket_elements,
            dtype=self._dtype,
            device=device,
            rank=self.rank,
            num_ranks=self._num_ranks,
            keep=self._send_to_host if zero.offload_optimizer else None,
        )
        self._scratch: list[torch.Tensor] = []
        if zero.offload_optimizer:
            largest = max(each.numel() for group in self.groups for each in group.parameters)
            self._scratch.append(self._host.empty(largest, self._dtype))
            with recorder.as_role("workspace"):
                self._scratch.append(torch.zeros(largest, dtype=self._dtype, device=device))
        self._gradients.watch()
        self._first_gradients()

    # -- making it ----------------------------------------------------------------------------------------------------

    def _make_groups(self, free_bytes: Callable[[], int]) -> list[Group]:
        groups = []
        for number, parameters in enumerate(self._stepping.trained()):
            self._recorder.empty_cache()
            group = make_group(
                parameters,
                self._zero,
                rank=self.rank,
                num_ranks=self._num_ranks,
                host=self._host,
                free_bytes=free_bytes(),
            )
            self._recorder.register(group.flat, role="weight")
            self._recorder.register(group.master, role="optimizer", device=self._place)
            self._stepping.replace(number, group.master)
            groups.append(group)
        return groups

    def _find_worst_rank(self) -> int:
        """The rank that keeps the most bytes of gradients: the whole gradient of each parameter that is at least partly
        in its partition. Of equal ranks, the first."""
        kept = [0] * self._num_ranks
        for parameters in self._stepping.trained():
            sizes = [each.numel() for each in parameters]
            ordered = tuple(sizes[index] for index in flat_order(len(sizes), self._zero, self._num_ranks))
            more = elements_kept(Layout(ordered, self._num_ranks))
            kept = [one + other for one, other in zip(kept, more, strict=True)]
        return kept.index(max(kept))

    @property
    def _place(self) -> Any:
        return "cpu" if self._zero.offload_optimizer else "gpu"

    def _make_host_buffers(self) -> None:
        if self._zero.offload_optimizer:
            for group in self.groups:
                self._host_copies.append(self._host.empty(group.layout.partition_elements, self._dtype))

    def _first_gradients(self) -> None:
        """`initialize_optimizer_states`: fp32 zeros for each partition. Those on the host are kept."""
        sizes = [group.layout.partition_elements for group in self.groups]
        if self._zero.offload_optimizer:
            self._host_gradients = [self._host.empty(size, torch.float32, role="gradient") for size in sizes]
            for group, gradient in zip(self.groups, self._host_gradients, strict=True):
                group.master.grad = gradient
            return
        zeros = [torch.zeros(size, dtype=torch.float32, device=self._device) for size in sizes]
        del zeros

    # -- what the step calls ------------------------------------------------------------------------------------------

    def without_boundary(self) -> AbstractContextManager[None]:
        """Open during every micro-batch but the last."""
        return without_boundary(self._gradients)

    def backward(self, loss: torch.Tensor) -> None:
        """`DeepSpeedEngine.backward`: multiplies the loss by its scale; hooks reduce the gradients."""
        scaled = loss * 1.0
        scaled.backward()
        with torch.no_grad():
            self._gradients.finish()

    @torch.no_grad()
    def step(self) -> torch.Tensor | None:
        """`DeepSpeedZeroOptimizer.step`. Returns the norm of the gradients."""
        self._gradients.micro_step = -1
        norm = self._norm()
        for number, group in enumerate(self.groups):
            if self._zero.offload_optimizer:
                self._step_on_host(number, group)
            else:
                self._step_group(number, group, norm)
        self._norms.clear()
        for group in self.groups:
            _all_gather(group.flat, group.partition)
            for parameter in group.parameters:
                parameter.grad = None
        return norm

    def _norm(self) -> torch.Tensor:
        checks = self._zero.checks_overflow or self._dtype == torch.float16
        if self._zero.offload_optimizer:
            return self._norm_of_host(checks)
        if checks:
            every = [each for group in self.groups for each in group.gradients or ()]
            norms.find_overflow(every, elementwise=self._zero.checks_elements, device=self._device)
            del every
            self._recorder.finish_streams()  # `.item()`
        found = [
            norms.norm_of_group((group.gradients or [])[: len(group.owned)], masks=True, device=self._device)
            for group in self.groups
        ]
        return norms.combine(found)

    def _step_group(self, number: int, group: Group, norm: torch.Tensor) -> None:
        assert group.gradients is not None
        if self.rank == self._num_ranks - 1:
            flat = _flatten_dense_tensors(aligned(group.gradients, group.layout.partition_elements))
        else:
            flat = _flatten_dense_tensors(group.gradients)
        gradient = flat.to(torch.float32)
        del flat
        self._recorder.register(gradient, role="gradient")
        group.master.grad = gradient
        for parameter in group.parameters:
            parameter.grad = None
        group.gradients = None
        norms.clip(gradient, norm, self._max_norm)
        self._stepping.step(number)
        group.master.grad = None
        del gradient
        group.partition.data.copy_(group.master.data)

    @property
    def _max_norm(self) -> float:
        said = self._zero.gradient_clipping
        return self._recipe.optimizer.max_grad_norm if said < 0 else said

    # -- an optimizer on the host -------------------------------------------------------------------------------------

    def _send_to_host(self, parameter: nn.Parameter, part: Slice) -> None:
        """Copies a reduced gradient that this rank owns to the host: it is accumulated there in the model's dtype, and
        in the last micro-batch it is copied in fp32 (`copy_grads_in_partition`)."""
        gradient = parameter.grad
        assert gradient is not None
        is_boundary = self._gradients.is_boundary
        if self._gradients.micro_step > 0 or not is_boundary:
            if id(parameter) not in self._accumulated:
                self._accumulated[id(parameter)] = self._host.empty(parameter.numel(), self._dtype, role="gradient")
            if self._gradients.micro_step > 0:
                scratch = self._scratch[1].view(-1).narrow(0, 0, parameter.numel())
                gradient.data.view(-1).add_(scratch)
        if not is_boundary:
            return
        owned = gradient.view(-1).narrow(0, part.start, part.elements)
        self._norms[id(parameter)] = owned.data.to(torch.double).norm(2)
        if self._zero.checks_overflow or self._dtype == torch.float16:
            norms.is_infinite(gradient.data, elementwise=self._zero.checks_elements)
        wide = owned.to(torch.float32)
        del wide
        parameter.grad = None

    def _norm_of_host(self, checks: bool) -> torch.Tensor:
        if checks:
            dist.all_reduce(torch.zeros(1, dtype=torch.uint8, device=self._device), op=dist.ReduceOp.MAX)
        totals = [torch.zeros(1, dtype=torch.float32, device=self._device) for _ in self.groups]
        for total in totals:
            dist.all_reduce(total)
        self._recorder.finish_streams()
        with self._recorder.on_host():
            return norms.combine([total[0] for total in totals])

    def _step_on_host(self, number: int, group: Group) -> None:
        with self._recorder.on_host():
            self._stepping.step(number)
        group.partition.data.copy_(self._host_copies[number])


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The in-place all-gather; PyTorch 2.14 has renamed it."""
