"""`TracedOptimizer`: what the step needs of an optimizer, the same for all libraries."""

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
"""A state tensor, the parameter that owns it (`None`: shared by several, or by none), and the kind of memory."""


def _nothing() -> None:
    return None


@dataclass
class TracedOptimizer:
    """One or several real (or rebuilt) optimizers over meta parameters.

    Attributes:
        name: axolotl's name of the optimizer.
        module: the model; `zero_grad` drops all its gradients, also those of parameters without an optimizer.
        optimizers: stepped in this order; empty where the step happens in backward hooks.
        notes: how the figures were calculated.
        hooked: optimizers that hooks step during backward; `step()` doesn't, but their state is reported.
        around_step: opened while the optimizers step, for libraries that call into a driver.
        after_backward: to be called after each backward pass; only LOMO does something then.
        releases_gradients: hooks free each gradient as soon as backward has made it, so there is nothing to clip.
        replaces_parameters: the step gives parameters new storages (GaLore's 8-bit steps), so weights have to be
            registered again after it.
        on_host: the parameters are in host memory, so the step runs there.
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
        """Every parameter that is optimised, once."""
        found: dict[int, nn.Parameter] = {}
        for optimizer in (*self.optimizers, *self.hooked):
            for group in optimizer.param_groups:
                found.update((id(parameter), parameter) for parameter in group["params"])
        return list(found.values())

    def step(self) -> None:
        """Steps on the parameters' meta gradients. States and temporaries come out of the operators it runs."""
        with meta_as_cpu() if self.on_host else meta_as_cuda(), self.around_step():
            for optimizer in self.optimizers:
                optimizer.step()

    def zero_grad(self) -> None:
        """Drops the gradients, as transformers does after the step (`model.zero_grad()`, `Trainer._run_epoch`)."""
        self.module.zero_grad(set_to_none=True)

    def state_tensors(self) -> Iterator[StateTensor]:
        """Every tensor that the optimizers keep between steps, each storage once.

        Right after `build_optimizer` this holds what a constructor allocates (Adagrad's sums); after a first step, all.
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
