"""DeepSpeed's linear layer: autograd keeps the parameter object, not the gathered memory.

Source: deepspeed 0.19.8 `runtime/zero/linear.py` `LinearFunctionForZeroStage3`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from axmem_trace.parallel.zero.parts import NOT_AVAILABLE, Parts
from axmem_trace.tracing.patching import replaced

_in_use: list[Any] = []
"""The linear function of the latest engine, while `linear_may_change` is open."""


@contextmanager
def linear_may_change() -> Iterator[None]:
    """While open, `use_linear` replaces `torch.nn.functional.linear`."""
    original = functional.linear

    def linear(*args: Any, **kwargs: Any) -> Any:
        return (_in_use[-1] if _in_use else original)(*args, **kwargs)

    try:
        with replaced(functional, "linear", linear):
            yield
    finally:
        _in_use.clear()


def use_linear(parts: Parts) -> None:
    """From now on, linear layers are DeepSpeed's."""
    _in_use[:] = [make_linear(parts)]


def make_linear(parts: Parts) -> Any:
    """The replacement of `torch.nn.functional.linear`."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            if input.dim() == 2 and bias is not None:
                return torch.addmm(bias, input, weight.t())
            output = input.matmul(weight.t())
            if bias is not None:
                output += bias
            return output

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None)

        @staticmethod
        def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
            input, weight, bias = ctx.saved_tensors
            part = parts.of(weight)
            was_divided = part is not None and part.status == NOT_AVAILABLE
            if part is not None and was_divided:
                parts.gather_now([part])
            grad_input = grad_weight = grad_bias = None
            dim = grad_output.dim()
            if ctx.needs_input_grad[0]:
                grad_input = grad_output.matmul(weight)
            if ctx.needs_input_grad[1]:
                if dim > 2:
                    rows = grad_output.reshape(-1, grad_output.shape[-1]).t()
                    grad_weight = rows.matmul(input.reshape(-1, input.shape[-1]))
                else:
                    grad_weight = grad_output.t().matmul(input)
            if bias is not None and ctx.needs_input_grad[2]:
                grad_bias = grad_output.sum(list(range(dim - 1))) if dim > 2 else grad_output.sum(0)
            if part is not None and was_divided:
                parts.release(part)
            return grad_input, grad_weight, grad_bias

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return Linear.apply(input, weight, bias)

    return linear
