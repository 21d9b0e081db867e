"""One parameter group of the optimizer under ZeRO-1 and 2: its flat buffer, and this rank's partition of it.

Source: deepspeed 0.19.8 `runtime/zero/stage_1_and_2.py` `DeepSpeedZeroOptimizer.__init__`, `_update_model_bit16_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._utils import _flatten_dense_tensors

from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.zero.layout import Layout, Slice, round_robin
from axmem_trace.recipe.parallel import Zero


@dataclass(eq=False)
class Group:
    """The parameters in one flat buffer.

    Attributes:
        parameters: in the order of the buffer.
        slices: the slices of each parameter, by its `id`; each names the rank that owns it.
        owned: the parameters that are at least partly in this rank's partition, and the part that is in it.
        flat: the buffer in the model's dtype. The parameters are views of it.
        partition: this rank's part of `flat`.
        master: this rank's part in fp32, which the optimizer updates.
        gradients: the gradients of this rank's partition after the last backward: views of whole gradients, and
            padding.
        kept: whole gradients of the owned parameters, summed over micro-batches.
    """

    parameters: list[nn.Parameter]
    layout: Layout
    slices: dict[int, tuple[Slice, ...]]
    owned: list[tuple[nn.Parameter, Slice]]
    flat: torch.Tensor
    partition: torch.Tensor
    master: nn.Parameter
    gradients: list[torch.Tensor] | None = None
    kept: list[torch.Tensor] = field(default_factory=list)

    @property
    def padding(self) -> int:
        """Elements of this rank's partition that belong to no parameter."""
        return self.layout.partition_elements - sum(part.elements for _, part in self.owned)


def make_group(
    parameters: Sequence[nn.Parameter], zero: Zero, *, rank: int, num_ranks: int, host: HostMemory, free_bytes: int
) -> Group:
    """Moves the parameters into one flat buffer and copies this rank's part to fp32.

    Args:
        parameters: the trainable parameters of one group of the optimizer.
        free_bytes: free bytes of the card. If the flat buffer does not fit in addition to the parameters, they are
            copied to the host and back.
    """
    ordered = [parameters[index] for index in flat_order(len(parameters), zero, num_ranks)]
    layout = Layout(tuple(each.numel() for each in ordered), num_ranks)
    shapes = [each.shape for each in ordered]
    if free_bytes >= layout.elements * ordered[0].element_size():
        flat = _flatten_dense_tensors(aligned(ordered, layout.elements)).detach()
    else:
        flat = _flatten_on_host(ordered, layout, host)
    begin = 0
    for parameter, shape in zip(ordered, shapes, strict=True):
        parameter.data = flat.narrow(0, begin, shape.numel()).view(shape)
        begin += shape.numel()
    partition = flat.narrow(0, rank * layout.partition_elements, layout.partition_elements)
    return Group(
        parameters=ordered,
        layout=layout,
        slices={id(parameter): owners for parameter, owners in zip(ordered, layout.owners(), strict=True)},
        owned=[(ordered[part.index], part) for part in layout.slices(rank)],
        flat=flat,
        partition=partition,
        master=_make_master(partition, zero, host),
    )


def flat_order(count: int, zero: Zero, num_ranks: int) -> Sequence[int]:
    """The order of a group's parameters in its buffer."""
    return round_robin(count, num_ranks) if zero.round_robin else range(count)


def aligned(tensors: Sequence[torch.Tensor], elements: int) -> list[torch.Tensor]:
    """The tensors, and padding up to a multiple of `elements` (`align_dense_tensors`)."""
    missing = elements - sum(each.numel() for each in tensors)
    if not missing:
        return list(tensors)
    return [*tensors, torch.zeros(missing, device=tensors[0].device, dtype=tensors[0].dtype)]


def _flatten_on_host(parameters: Sequence[nn.Parameter], layout: Layout, host: HostMemory) -> torch.Tensor:
    """Makes the flat buffer on the host, because the card has no memory for a second copy. The parameters are freed
    before the buffer is copied to the GPU."""
    dtype, device = parameters[0].dtype, parameters[0].device
    copies = []
    for each in parameters:
        copies.append(host.copy_of(each.data))
        each.data = torch.empty(1, dtype=dtype, device=device)
    whole = host.pageable(layout.elements, dtype)
    del copies
    flat = torch.empty(layout.elements, dtype=dtype, device=device)
    del whole
    return flat


def _make_master(partition: torch.Tensor, zero: Zero, host: HostMemory) -> nn.Parameter:
    copy = partition.detach().clone()
    if not zero.offload_optimizer:
        return nn.Parameter(copy.to(torch.float32))
    return host.parameter(copy.numel(), torch.float32)  # a blocking copy changes the dtype on the host
