"""ZeRO-1 and 2 in backward: gradients are copied into a bucket and reduced. This rank keeps those that it owns.

Source: deepspeed 0.19.8 `runtime/zero/stage_1_and_2.py` `reduce_independent_p_g_buckets_and_remove_grads`,
`reduce_ipg_grads`, `copy_grads_in_partition`, `setup_buckets`, `independent_gradient_partition_epilogue`.
`reduction.py` reduces a bucket across the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from axmem_trace.parallel.zero.group import Group
from axmem_trace.parallel.zero.layout import Slice
from axmem_trace.parallel.zero.reduction import Reduction
from axmem_trace.recipe.parallel import Zero
from axmem_trace.tracing.recorder import Recorder

Keep = Callable[[nn.Parameter, Slice], None]


@dataclass
class _Bucket:
    """Gradients that wait for their reduction. `buffers` has one or two of `reduce_bucket_size` elements."""

    buffers: list[torch.Tensor] = field(default_factory=list)
    members: list[tuple[Group, nn.Parameter]] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    elements: int = 0
    index: int = 0

    def clear(self) -> None:
        self.members.clear()
        self.gradients.clear()
        self.elements = 0


class Gradients:
    """The reduction of one rank's gradients.

    Args:
        bucket_elements: `reduce_bucket_size`.
        dtype: that of the model and of the buckets.
        keep: called with an owned parameter whose reduced gradient is not kept on the GPU; None: it is kept on the GPU.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        zero: Zero,
        recorder: Recorder,
        *,
        bucket_elements: int,
        dtype: torch.dtype,
        device: torch.device,
        rank: int,
        num_ranks: int,
        keep: Keep | None = None,
    ) -> None:
        self.groups, self._zero, self._recorder = groups, zero, recorder
        self._bucket_elements, self._dtype, self._device, self._keep = bucket_elements, dtype, device, keep
        self._reduction = Reduction(
            zero, recorder, bucket_elements=bucket_elements, dtype=dtype, rank=rank, num_ranks=num_ranks
        )
        self._bucket = _Bucket()
        self._large: nn.Parameter | None = None
        """A parameter that is too large for a bucket."""
        self._partition: torch.Tensor | None = None
        self._partition_used = 0
        self._cleared_later: list[nn.Parameter] = []
        self._owned = {id(parameter): part for group in groups for parameter, part in group.owned}
        self.is_boundary = True
        self.micro_step = -1
        self._is_ready = False

    def watch(self) -> None:
        """Adds hooks, which handle each gradient as soon as backward has accumulated it."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(group))

    def _hook(self, group: Group) -> Callable[[torch.Tensor], None]:
        def arrived(parameter: Any) -> None:
            self._set_up()
            if self._zero.stage == 2 or (self._zero.overlaps and self.is_boundary):
                self._collect(group, parameter)

        return arrived

    def _set_up(self) -> None:
        if self._is_ready:
            return
        self.micro_step += 1
        if self._zero.contiguous_gradients:
            self._bucket.buffers.clear()
            self._bucket.index = 0
            with self._recorder.as_role("workspace", "reduce_scatter"):
                for _ in range(2 if self._zero.overlaps else 1):
                    buffer = torch.empty(self._bucket_elements, dtype=self._dtype, device=self._device)
                    self._bucket.buffers.append(buffer)
        self._is_ready = True

    def _collect(self, group: Group, parameter: nn.Parameter) -> None:
        gradient, bucket = parameter.grad, self._bucket
        assert gradient is not None
        if bucket.elements + parameter.numel() > self._bucket_elements:
            self._reduce()
            if self._zero.contiguous_gradients and self._zero.overlaps:
                bucket.index = 1 - bucket.index
        if self._zero.contiguous_gradients:
            if parameter.numel() > self._bucket_elements:
                if self._zero.offload_optimizer:
                    gradient.data = gradient.detach().clone(memory_format=torch.contiguous_format)
                self._large = parameter
            else:
                place = bucket.buffers[bucket.index].narrow(0, bucket.elements, parameter.numel())
                place.copy_(gradient.view(-1))
                gradient.data = place.data.view_as(gradient)
        bucket.elements += parameter.numel()
        bucket.gradients.append(gradient)
        bucket.members.append((group, parameter))

    # -- reducing -----------------------------------------------------------------------------------------------------

    def _reduce(self) -> None:
        bucket = self._bucket
        if not self._zero.contiguous_gradients:
            self._reduce_separate(bucket.gradients)
        elif self._large is not None:
            assert self._large.grad is not None
            self._reduction.average(self._large.grad.view(-1), self._slices())
            self._large = None
        else:
            self._reduction.average(bucket.buffers[bucket.index].narrow(0, 0, bucket.elements), self._slices())
        with self._reduction.on_stream():
            for _, parameter in bucket.members:
                self._settle(parameter)
            bucket.clear()

    def _slices(self) -> list[Slice]:
        """The slices of the bucket in order; each names the rank that owns it."""
        return [part for group, parameter in self._bucket.members for part in group.slices[id(parameter)]]

    def _reduce_separate(self, gradients: Sequence[torch.Tensor]) -> None:
        if gradients:
            if self._zero.overlaps:
                self._reduction.synchronise()
                self._clear_earlier()
            self._reduction.reduce_separate(gradients)

    def _settle(self, parameter: nn.Parameter) -> None:
        """The ranks that own a reduced gradient keep it. With ZeRO-2, the other ranks drop it."""
        is_owned = id(parameter) in self._owned
        if self._zero.contiguous_gradients and is_owned:
            self._keep_owned(parameter)
        elif self._zero.stage == 2 and not is_owned:
            if self._zero.overlaps and not self._zero.contiguous_gradients:
                self._cleared_later.append(parameter)
            else:
                parameter.grad = None

    def _keep_owned(self, parameter: nn.Parameter) -> None:
        """Copies the whole gradient into the buffer of all owned gradients, because its bucket will be filled again."""
        if self._keep is not None:
            self._keep(parameter, self._owned[id(parameter)])
            return
        if self._partition is None:
            total = sum(each.numel() for group in self.groups for each, _ in group.owned)
            self._partition = torch.empty(total, dtype=self._dtype, device=self._device)
            self._recorder.register(self._partition, role="gradient")
            self._partition_used = 0
        gradient = parameter.grad
        assert gradient is not None
        place = self._partition.view(-1).narrow(0, self._partition_used, parameter.numel())
        place.copy_(gradient.view(-1))
        gradient.data = place.data.view_as(gradient)
        self._partition_used += parameter.numel()

    def _clear_earlier(self) -> None:
        for parameter in self._cleared_later:
            parameter.grad = None
        self._cleared_later.clear()

    # -- after backward -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Reduces the remaining gradients: after each backward with ZeRO-2, after the last one with ZeRO-1."""
        if self._zero.stage == 1:
            if not self.is_boundary:
                return
            if not self._zero.overlaps:
                for group in self.groups:
                    for parameter in group.parameters:
                        if parameter.grad is not None:
                            self._collect(group, parameter)
        self._reduce()
        if self._zero.overlaps:
            self._reduction.synchronise()
            self._clear_earlier()
        if self._keep is None:
            for group in self.groups:
                self._add_up(group)
        self._bucket.buffers.clear()
        if self._zero.contiguous_gradients:
            self._partition = None
        self._is_ready = False
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def _add_up(self, group: Group) -> None:
        gradients = [
            parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            for parameter, _ in group.owned
        ]
        if group.kept:
            for kept, gradient in zip(group.kept, gradients, strict=True):
                kept.add_(gradient)
        else:
            group.kept = gradients
        if self.is_boundary:
            group.gradients = self._cut(group)
            group.kept = []

    def _cut(self, group: Group) -> list[torch.Tensor]:
        """`get_flat_partition`: views of the gradients, and zeros for elements that belong to no parameter."""
        size = group.layout.partition_elements
        if not group.owned:
            return [torch.zeros(size, dtype=self._dtype, device=self._device)]
        found = []
        for (parameter, part), gradient in zip(group.owned, group.kept, strict=True):
            if part.elements == parameter.numel():
                found.append(gradient)
            else:
                found.append(gradient.contiguous().view(-1).narrow(0, part.start, part.elements))
        if group.padding:
            found.append(torch.zeros(group.padding, dtype=self._dtype, device=self._device))
        return found
