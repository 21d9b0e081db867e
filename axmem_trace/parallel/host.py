"""Host memory of one rank: tensors that an engine keeps there, or copies through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from axmem_trace.ledger import Role
from axmem_trace.parallel.wrapped_names import module_of
from axmem_trace.tracing.recorder import Recorder


def copies_on_host(model: nn.Module, recorder: Recorder) -> dict[int, torch.Tensor]:
    """For each parameter, a host tensor that is not pinned, by the parameter's `id`. A tied parameter has one."""
    host, copies = HostMemory(recorder), {}
    for name, parameter in model.named_parameters():
        with recorder.in_module(module_of(name)):
            copies[id(parameter)] = host.pageable(parameter.numel(), parameter.dtype)
    return copies


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Makes tensors that count as host memory as long as they are alive.

    Attributes:
        pins: whether blocks are pinned. PyTorch allocates pinned blocks in powers of two (2.13,
            ATen/core/CachingHostAllocator.h, `allocate`).
    """

    recorder: Recorder
    pins: bool = False

    def empty(self, elements: int, dtype: torch.dtype, *, role: Role = "") -> torch.Tensor:
        """A flat tensor on the host.

        `pin_memory` makes a copy: the block that is not pinned is freed when the pinned block is filled.
        """
        passing = self.pageable(elements, dtype)
        if self.pins:
            return self.recorder.copy_to_host(passing, role=role)
        self.recorder.register(passing, role=role)
        return passing

    def parameter(self, elements: int, dtype: torch.dtype) -> nn.Parameter:
        """A parameter on the host, which the optimizer updates."""
        return nn.Parameter(self.empty(elements, dtype, role="optimizer"))

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy that is not pinned (`Tensor.cpu`)."""
        return self.pageable(tensor.numel(), tensor.dtype)

    def pageable(self, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A flat tensor that is not pinned."""
        with self.recorder.paused():
            tensor = torch.empty(elements, dtype=dtype, device=self.recorder.traced_device)
        with self.recorder.on_host():
            self.recorder.allocate(tensor, "to_host")
        return tensor
