"""`TracedOptimizer`: an optimizer's interface for the training step, the same for all libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from axmem_trace.ledger import Device
from axmem_trace.notes import Notes
from axmem_trace.tracing.tensors import local_part, tensors_in
from axmem_trace.training.optimizers.meta_as_cuda import meta_as_cpu, meta_as_cuda
from axmem_trace.training.optimizers.outside_gpu import device_of

StateTensor = tuple["nn.Parameter | None", torch.Tensor, Device]
"""The parameter that owns a state tensor (`None`: several parameters, or none), the state tensor, and its kind of
memory."""


def _nothing() -> None:
    return None


@dataclass
class TracedOptimizer:
    """One or several real (or rebuilt) optimizers over meta parameters.

    Attributes:
        name: axolotl's name of the optimizer.
        module: the model; `zero_grad` drops all its gradients, also those of parameters without an optimizer.
        optimizers: they run in this order; empty if backward hooks make the updates.
        notes: how the figures were calculated.
        hooked: optimizers that hooks run during backward. `step()` does not run them, but their states are reported.
        around_step: a context that is open while the optimizers run, for libraries that call a driver.
        after_backward: must be called after each backward pass; only LOMO does something in it.
        releases_gradients: whether hooks free each gradient as soon as backward has made it, so that there is nothing
            to clip.
        replaces_parameters: whether the parameters have new storages after the step (GaLore's 8-bit steps), so that
            weights must be registered again.
        on_host: whether the parameters are in host memory, so that the optimizer runs on the CPU.
    """

    name: str
    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    notes: Notes = field(default_factory=Notes)
    hooked: Sequence[torch.optim.Optimizer] = ()
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext
    after_backward: Callable[[], None] = _nothing
    releases_gradients: bool = False
    replaces_parameters: bool = False
    on_host: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter of the optimizers, once."""
        found: dict[int, nn.Parameter] = {}
        for optimizer in (*self.optimizers, *self.hooked):
            for group in optimizer.param_groups:
                found.update((id(parameter), parameter) for parameter in group["params"])
        return list(found.values())

    def step(self) -> None:
        """Runs the optimizers with the parameters' meta gradients. States and temporaries are results of the operators
        that they run."""
        with meta_as_cpu() if self.on_host else meta_as_cuda(), self.around_step():
            for optimizer in self.optimizers:
                optimizer.step()

    def zero_grad(self) -> None:
        """Drops the gradients, like transformers after the step (`model.zero_grad()`, `Trainer._run_epoch`)."""
        self.module.zero_grad(set_to_none=True)

    def state_tensors(self) -> Iterator[StateTensor]:
        """Every tensor that the optimizers keep between steps, each storage once.

        Directly after `build_optimizer`, these are the tensors of the constructor (Adagrad's sums). After a first step,
        they are all state tensors.
        """
        found: dict[int, tuple[torch.Tensor, list[Any]]] = {}
        for optimizer in (*self.optimizers, *self.hooked):
            for owner, values in optimizer.state.items():
                for tensor in map(local_part, tensors_in(values)):
                    _, owners = found.setdefault(tensor.untyped_storage()._cdata, (tensor, []))
                    if len(owners) < 2 and all(owner is not known for known in owners):
                        owners.append(owner)
        own = {id(parameter) for parameter in self.parameters}
        for tensor, owners in found.values():
            alone = owners[0] if len(owners) == 1 and id(owners[0]) in own else None
            device = device_of(tensor)
            yield alone, tensor, "cpu" if self.on_host and device == "gpu" else device

    def state_bytes(self, device: Device = "gpu") -> int:
        """Bytes of all state in one kind of memory, as requested (not rounded to allocator blocks)."""
        return sum(tensor.untyped_storage().nbytes() for _, tensor, memory in self.state_tensors() if memory == device)

    @property
    def host_bytes(self) -> int:
        """Bytes of state in ordinary host memory: step counters of torch's unfused optimizers, GrokAdamW's states."""
        return self.state_bytes("cpu")
