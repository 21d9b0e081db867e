"""DDP around a model whose repeated layers are traced once: the buckets are those of the whole model.

A DDP bucket may end in the middle of a layer, so buckets can't be divided into layers. But they depend only on the
parameters, their order, and the order of the gradients. So DDP is made twice more, around placeholders of the
parameters. The first uses placeholders of the whole model; its buckets and broadcasts are recorded. The second uses
placeholders of the short model; it must allocate exactly the same as the real DDP around the short model. The gradients
of placeholders arrive in the order of the real backward, to which the missing layers are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from axmem_trace.folding.facts import unfold_rows
from axmem_trace.folding.repetition import CannotFold, Repetition
from axmem_trace.parallel.ddp.wrap import rebuild_buckets, wrap_model
from axmem_trace.recipe.parallel import Ddp
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode


class NamedTensor(NamedTuple):
    """A parameter or buffer, and its name."""

    name: str
    tensor: torch.Tensor


def wrap_short_model(
    model: nn.Module, ddp: Ddp, recorder: Recorder, repetition: Repetition
) -> tuple[Any, Callable[[], None]]:
    """The short model inside DDP. The recorder gets the buckets of the whole model.

    Returns:
        The wrapper; and a function that rebuilds the buckets, as the second step does before its first forward pass.

    Raises:
        CannotFold: the parameters or their gradients are not ordered layer by layer, or the real DDP and the DDP of the
            placeholders have different allocations.
    """
    parameters = [NamedTensor(*each) for each in model.named_parameters()]
    buffers = [NamedTensor(*each) for each in model.named_buffers()]
    aside = _Aside(recorder)
    with aside.compared():
        wrapped = wrap_model(model, ddp)
    with aside.compared(again=True):
        short = _Placeholders(parameters, buffers, ddp, recorder)
    whole = _Placeholders(_whole(parameters, repetition), _whole(buffers, repetition), ddp, recorder)
    arrived = _watch_gradients(parameters, wrapped)

    def reduce() -> None:
        names, arrived[:] = list(arrived), []
        if names:
            short.reduce(names, recorder)
            whole.reduce(_whole_order(names, repetition), recorder)

    def before_forward() -> None:
        reduce()
        with aside.compared(again=True):
            short.forward(wrapped)
        whole.forward(wrapped)

    def rebuild() -> None:
        with aside.compared():
            rebuild_buckets(wrapped, recorder)
        reduce()
        with aside.compared(again=True):
            rebuild_buckets(short.wrapped, recorder)
        rebuild_buckets(whole.wrapped, recorder)

    _call_before_forward(wrapped, aside, before_forward)
    return wrapped, rebuild


class _Placeholders:
    """Parameters and buffers with the same shapes as those of a model, inside DDP."""

    def __init__(
        self, parameters: Sequence[NamedTensor], buffers: Sequence[NamedTensor], ddp: Ddp, recorder: Recorder
    ) -> None:
        module = _Nothing()
        with recorder.paused():
            self.parameters = {name: _like(tensor, nn.Parameter) for name, tensor in parameters}
            for number, parameter in enumerate(self.parameters.values()):
                module.register_parameter(f"parameter_{number}", parameter)
            for number, (_, tensor) in enumerate(buffers):
                module.register_buffer(f"buffer_{number}", _like(tensor))
        for tensor in (*module.parameters(), *module.buffers()):
            recorder.leave_out(tensor)  # DDP broadcasts a tensor of over 250 MiB without a copy
        self.wrapped = wrap_model(module, ddp)

    def forward(self, real: Any) -> None:
        """Runs DDP's code before and after a forward pass. Whether its backward reduces gradients is as in the real
        DDP."""
        self.wrapped.require_backward_grad_sync = real.require_backward_grad_sync
        self.wrapped()

    def reduce(self, names: Sequence[str], recorder: Recorder) -> None:
        """Passes the gradients to DDP in this order; DDP reduces them."""
        with recorder.paused():
            for name in names:
                parameter = self.parameters[name]
                torch.autograd.backward([parameter], [torch.empty_like(parameter)])
            for parameter in self.parameters.values():
                parameter.grad = None


class _Nothing(nn.Module):
    def forward(self) -> tuple[()]:
        """Has no result."""
        return ()


class _Aside:
    """Keeps the allocations of the real DDP out of the record, and checks that its placeholders allocate the same."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._modes = (RecordingMode(), RecordingMode())

    @contextmanager
    def compared(self, *, again: bool = False) -> Iterator[None]:
        """Open for the real DDP; then, with `again`, for the placeholders.

        Raises:
            CannotFold: the allocations differ.
        """
        with self._recorder.paused(), self._modes[again]:
            yield
        if again and _events(self._modes[0].recorder) != _events(self._modes[1].recorder):
            raise CannotFold("DDP allocates other blocks for the model than for placeholders of its parameters")


def _events(recorder: Recorder) -> list[tuple[int, int, int, str]]:
    ledger = recorder.make_ledger()
    return [(each.allocated_tick, each.freed_tick, each.nbytes, each.device) for each in ledger.allocations]


def _like(tensor: torch.Tensor, kind: Callable[..., Any] | None = None) -> Any:
    data = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return kind(data, requires_grad=tensor.requires_grad) if kind else data


def _watch_gradients(parameters: Sequence[NamedTensor], wrapped: Any) -> list[str]:
    """The names of parameters in the order of their gradients, from backward passes that reduce them."""
    arrived: list[str] = []

    def watch(name: str, parameter: torch.Tensor) -> None:
        def note(_: torch.Tensor) -> None:
            if wrapped.require_backward_grad_sync:
                arrived.append(name)

        parameter.register_post_accumulate_grad_hook(note)

    for name, parameter in parameters:
        if parameter.requires_grad:
            watch(name, parameter)
    return arrived


def _call_before_forward(wrapped: Any, aside: _Aside, call: Callable[[], None]) -> None:
    """Calls `call` each time after DDP's own code before a forward pass, whose allocations are kept out of the
    record."""
    pre_forward = wrapped._pre_forward

    def pre_forward_aside(*inputs: Any, **kwargs: Any) -> Any:
        with aside.compared():
            result = pre_forward(*inputs, **kwargs)
        call()
        return result

    wrapped._pre_forward = pre_forward_aside


def _whole(tensors: Sequence[NamedTensor], repetition: Repetition) -> tuple[NamedTensor, ...]:
    return unfold_rows(tensors, repetition, lambda row, layer: row._replace(name=repetition.renamed(row.name, layer)))


def _whole_order(names: Sequence[str], repetition: Repetition) -> list[str]:
    """The order of the whole model's gradients. Backward runs from the last layer to the first."""
    from_below = [NamedTensor(name, torch.empty(0)) for name in reversed(names)]
    return [row.name for row in reversed(_whole(from_below, repetition))]
