"""Softmax and log-softmax as on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()

_KERNELS = {
    function: kernel
    for kernel, functions in (
        (aten._softmax, (F.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax)),
        (aten._log_softmax, (F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax, torch.special.log_softmax)),
    )
    for function in functions
}


@RULES.function(*_KERNELS)
def softmax(context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The kernel itself converts fp16 to fp32. Every other conversion makes a copy that is kept, on CUDA and on meta.

    Source: aten/src/ATen/native/SoftMax.cpp, `softmax`, `log_softmax`: `is_cuda() && Half && dtype == Float`.
    """
    tensor = args[0] if args else kwargs["input"]
    if not tensor.is_meta or tensor.dtype is not torch.float16:
        return call_original(function, args, kwargs)
    dim, dtype = _dim_and_dtype(*args[1:], **kwargs)
    if dtype is not torch.float32 or dim is None:
        return call_original(function, args, kwargs)
    return _KERNELS[function](tensor, dim, True)


def _dim_and_dtype(*args: Any, dim: int | None = None, dtype: torch.dtype | None = None, **_: Any) -> Any:
    """Dimension and dtype, from arguments `(dim, dtype)` or `(dim, _stacklevel, dtype)` (`torch.nn.functional`)."""
    named = next((argument for argument in args if isinstance(argument, torch.dtype)), dtype)
    return args[0] if args and type(args[0]) is int else dim, named


@RULES.workspace(aten._softmax.default, aten._log_softmax.default)
def softmax_workspace(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """A copy of an input that is not contiguous. Source: aten/src/ATen/native/cuda/SoftMax.cu, `host_softmax`."""
    return _copies(args[0])


@RULES.workspace(aten._softmax_backward_data.default)
def softmax_backward_workspace(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """`grad * output` in the gradient's layout, and copies of the gradient and the output if they are not contiguous.

    Source: aten/src/ATen/native/cuda/SoftMax.cu, `softmax_backward_cuda_out`, `host_softmax_backward`. The bytes equal those
    of PyTorch's CUDA build.
    """
    grad, output = args[0], args[1]
    product = output.numel() * torch.promote_types(grad.dtype, output.dtype).itemsize
    return [product, *([] if grad.is_contiguous() else [product]), *_copies(output)]


@RULES.workspace(aten._log_softmax_backward_data.default)
def log_softmax_backward_workspace(
    context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[int]:
    """Copies of gradient and output if they are not contiguous. Source: SoftMax.cu, `host_softmax_backward`."""
    return _copies(args[0]) + _copies(args[1])


def _copies(tensor: torch.Tensor) -> list[int]:
    return [] if tensor.is_contiguous() else [tensor.numel() * tensor.element_size()]
