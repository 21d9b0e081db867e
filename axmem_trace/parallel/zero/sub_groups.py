"""ZeRO-3's sub groups: the parts of trainable parameters in one buffer, divided into the groups that one optimizer step
updates.

Source: deepspeed 0.19.8 `runtime/zero/stage3.py` `_create_fp16_partitions_with_defragmentation`,
`_create_fp32_partitions`, `_create_param_groups_fp16_flat_cpu_memory`, `_create_fp16_sub_groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.zero.parts import Part, Parts
from axmem_trace.parallel.zero.stepping import Stepping
from axmem_trace.recipe.parallel import Zero
from axmem_trace.tracing.recorder import Recorder

_Divided = Sequence[tuple[int, Sequence[Part]]]
"""The parts of each sub group, and the number of the optimizer's group."""


@dataclass(eq=False)
class SubGroup:
    """Parts that the optimizer updates in one step.

    Attributes:
        group: the number of the optimizer's group.
        flat: the parts in the model's dtype.
        master: the same in fp32.
    """

    parts: list[Part]
    group: int
    flat: torch.Tensor
    master: nn.Parameter

    @property
    def elements(self) -> int:
        """The number of elements of all its parts."""
        return sum(part.elements for part in self.parts)


def make_sub_groups(
    zero: Zero, recorder: Recorder, stepping: Stepping, parts: Parts, host: HostMemory, device: torch.device
) -> tuple[list[SubGroup], list[torch.Tensor]]:
    """The sub groups, and the buffers; the parts of the sub groups are views of the buffers.

    `_create_fp16_partitions_with_defragmentation` and `_create_fp32_partitions`.
    """
    divided = [
        (number, own)
        for number, parameters in enumerate(stepping.trained())
        for own in _cut([_part_of(each, parts) for each in parameters], zero.sub_group_elements)
    ]
    if zero.offload_params:
        flats, buffers = _defragment_on_host(divided, recorder)
    else:
        flats, buffers = _defragment(divided, recorder, host, device)
    groups: list[SubGroup] = []
    converted: torch.Tensor | None = None
    for (number, own), flat in zip(divided, flats, strict=True):
        if zero.offload_optimizer:
            pageable = HostMemory(recorder)
            master = pageable.parameter(flat.numel(), torch.float32)
        elif zero.offload_params:
            converted = torch.empty(flat.numel(), dtype=torch.float32, device=device)
            master = nn.Parameter(converted.clone().detach())
        else:
            converted = flat.to(torch.float32)
            master = nn.Parameter(converted.clone().detach())
        recorder.register(master, role="optimizer", device="cpu" if zero.offload_optimizer else "gpu")
        groups.append(SubGroup(own, number, flat, master))
    del converted
    stepping.clear()
    return groups, buffers


def _part_of(parameter: nn.Parameter, parts: Parts) -> Part:
    part = parts.of(parameter)
    assert part is not None
    return part


def _defragment(
    divided: _Divided, recorder: Recorder, host: HostMemory, device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Copies the parts of all trainable parameters into one buffer, through host memory."""
    every = [part for _, parts in divided for part in parts]
    first = every[0].tensor
    assert first is not None
    dtype, elements = first.dtype, sum(part.elements for part in every)
    passing = host.pageable(elements, dtype)
    for part in every:
        part.tensor = None
    del first
    recorder.empty_cache()
    whole = torch.empty(elements, dtype=dtype, device=device)
    del passing
    recorder.register(whole, role="weight")
    return _distribute(whole, [parts for _, parts in divided]), [whole]


def _defragment_on_host(divided: _Divided, recorder: Recorder) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """`_create_param_groups_fp16_flat_cpu_memory`: a pinned buffer for each group of the optimizer."""
    pinned = HostMemory(recorder, pins=True)
    first = divided[0][1][0].tensor
    assert first is not None
    by_group: dict[int, list[Sequence[Part]]] = {}
    for number, parts in divided:
        by_group.setdefault(number, []).append(parts)
    buffers = [
        pinned.empty(sum(part.elements for parts in own for part in parts), first.dtype, role="weight")
        for own in by_group.values()
    ]
    pairs = zip(buffers, by_group.values(), strict=True)
    return [flat for whole, own in pairs for flat in _distribute(whole, own)], buffers


def _distribute(whole: torch.Tensor, divided: Sequence[Sequence[Part]]) -> list[torch.Tensor]:
    """Makes the parts views of the buffer; returns the view of each sub group."""
    begin = 0
    for part in (part for parts in divided for part in parts):
        part.tensor = whole.narrow(0, begin, part.elements)
        begin += part.elements
    return list(whole.split([sum(part.elements for part in parts) for parts in divided]))


def _cut(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """`_create_fp16_sub_groups`: each sub group has `most` elements of parts, or a few more."""
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
