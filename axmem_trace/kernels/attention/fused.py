"""A fused attention kernel on meta: one autograd function that keeps and allocates the same tensors as the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key and value, in the layout that the kernel expects."""


def no_scratch(heads: Heads) -> Sequence[int]:
    """For a kernel without temporary memory."""
    return ()


@dataclass(frozen=True, kw_only=True)
class FusedKernel:
    """The memory of one kernel.

    Attributes:
        name: the name of the operator of its allocations.
        make_outputs: returns the output first, then other tensors that are kept for backward (logsumexp, RNG state, ...).
        forward_scratch, backward_scratch: return the bytes of the blocks that are alive together while the kernel runs.
        padding: the number of zeros that are added to the head size; the padded tensors are kept.
        dispatched: the forward is an operator that PyTorch's dispatcher sees, as in flash-attn. Then selective checkpointing
            can save its outputs.
        window_left: the operator's `window_size_left`; -1: no window.
        make_gradient: allocates the gradient of one input.
    """

    name: str
    make_outputs: Callable[[Heads], tuple[torch.Tensor, ...]]
    forward_scratch: Callable[[Heads], Sequence[int]] = no_scratch
    backward_scratch: Callable[[Heads], Sequence[int]] = no_scratch
    padding: int = 0
    dispatched: bool = False
    window_left: int = -1
    make_gradient: Callable[[torch.Tensor], torch.Tensor] = field(default=torch.empty_like)


def run_fused(
    context: KernelContext,
    kernel: FusedKernel,
    heads: Heads,
    *,
    also_kept: Sequence[torch.Tensor] = (),
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernel's output, attached to autograd.

    Args:
        also_kept: inputs without gradient that the kernel keeps too, such as the start of each sample.
        sink: attention sinks, one for each head, which train.
    """
    out: torch.Tensor = _Fused.apply(context, kernel, tuple(also_kept), *heads, sink)
    return out


class _Fused(torch.autograd.Function):
    """Keeps query, key, value (padded if the kernel pads), output and the kernel's own tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        context: KernelContext,
        kernel: FusedKernel,
        also_kept: tuple[torch.Tensor, ...],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sink: torch.Tensor | None,
    ) -> torch.Tensor:
        value_dim = value.shape[-1]
        heads = _padded((query, key, value), kernel.padding)
        out, *kept = _run_forward(context, kernel, heads)
        ctx.save_for_backward(*heads, sink, out, *kept, *also_kept)
        ctx.context, ctx.kernel = context, kernel
        return out[..., :value_dim] if kernel.padding else out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        kernel: FusedKernel = ctx.kernel
        *heads, sink = ctx.saved_tensors[:4]
        gradients = [kernel.make_gradient(each) for each in heads]
        grad_out = _padded(grad_outputs, kernel.padding)  # noqa: F841  (alive while the kernel runs)
        ctx.context.recorder.workspace(kernel.backward_scratch(tuple(heads)), f"{kernel.name}_backward")
        if kernel.padding:
            gradients = [gradient[..., : gradient.shape[-1] - kernel.padding] for gradient in gradients]
        return None, None, None, *gradients, None if sink is None else torch.empty_like(sink)


def _run_forward(context: KernelContext, kernel: FusedKernel, heads: Heads) -> Sequence[torch.Tensor]:
    if not kernel.dispatched:
        return _allocate_forward(context, kernel, heads)
    _RUNNING.append((context, kernel))
    try:
        outputs: Sequence[torch.Tensor] = torch.ops.axmem_trace.flash_attn_forward(*heads, kernel.window_left)
        return outputs
    finally:
        _RUNNING.pop()


def _allocate_forward(context: KernelContext, kernel: FusedKernel, heads: Heads) -> Sequence[torch.Tensor]:
    outputs = kernel.make_outputs(heads)
    context.recorder.allocate(outputs, kernel.name)
    context.recorder.workspace(kernel.forward_scratch(heads), kernel.name)
    return outputs


_RUNNING: list[tuple[KernelContext, FusedKernel]] = []
"""The kernel that the operator below currently represents. axolotl's policy searches for the operator's name."""
_LIBRARY = torch.library.Library("axmem_trace", "DEF")
_LIBRARY.define("flash_attn_forward(Tensor query, Tensor key, Tensor value, int window_size_left) -> Tensor[]")


@torch.library.impl(_LIBRARY, "flash_attn_forward", "Meta")
def _flash_attn_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window_size_left: int
) -> list[torch.Tensor]:
    context, kernel = _RUNNING[-1]
    return list(_allocate_forward(context, kernel, (query, key, value)))


def _padded(tensors: tuple[torch.Tensor, ...], padding: int) -> Any:
    if not padding:
        return tensors
    return tuple(torch.nn.functional.pad(tensor, [0, padding]) for tensor in tensors)
