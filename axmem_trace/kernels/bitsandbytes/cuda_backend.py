"""bitsandbytes' CUDA backend without its C library: the Python code of its kernels allocates as on a GPU.

Source: bitsandbytes 0.50 `backends/cuda/ops.py`; for operators without a CUDA kernel, `backends/default/ops.py`. Each kernel
allocates its outputs and temporary tensors with torch, and passes their addresses to a C function, which does not use
torch's allocator.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from axmem_trace.imports import compile_when_called
from axmem_trace.kernels.card import num_sms
from axmem_trace.tracing.autocast import Autocast
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.patching import replaced

Kernel = Callable[..., Any]


class _NoLibrary:
    """Replaces the C library: every function does nothing and returns success (0)."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        def do_nothing(*args: Any) -> int:
            return 0

        return do_nothing


class _AutocastInside(TorchFunctionMode):
    """Applies autocast to torch functions inside a custom operator's CUDA kernel, where torch does not switch it off."""

    def __init__(self) -> None:
        super().__init__()
        self._autocast = Autocast()

    @called_by_libraries
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = self._autocast.apply(func, args, kwargs or {})
        return call_original(func, args, kwargs)


class WholeOps(TorchDispatchMode):
    """Splits composite operators (`to`, `linear`) into basic operators. torch does not do this below autograd, where kernels
    run."""

    @called_by_libraries
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _is_composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return call_original(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def run_cuda_kernel(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A dispatch rule: runs the operator's CUDA kernel, so that its operators are recorded."""
    kernels, module = _cuda_kernels()
    module._gpu_dispatch_props = lambda index: (num_sms(context), *context.compute_capability)  # type: ignore[attr-defined]
    with WholeOps(), _autocast_inside():
        return kernels[op._schema.name](*args, **kwargs)


def has_cuda_kernel(name: str) -> bool:
    """True if the installed bitsandbytes has this operator and a kernel for it on CUDA."""
    return f"bitsandbytes::{name}" in _cuda_kernels()[0]


def remember_autocast(
    context: KernelContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A function rule: records whether autocast is on. Below autograd, where kernels run, torch no longer knows it."""
    _autocast_dtypes.append(torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None)
    try:
        return call_original(function, args, kwargs)
    finally:
        _autocast_dtypes.pop()


_autocast_dtypes: list[torch.dtype | None] = []
"""Autocast's dtype for each running call of a bitsandbytes operator. The innermost call is last. None: autocast is off."""


@contextmanager
def _autocast_inside() -> Iterator[None]:
    dtype = _autocast_dtypes[-1] if _autocast_dtypes else None
    if dtype is None:
        yield
        return
    with torch._C._EnableTorchFunction(), torch.autocast("cuda", dtype=dtype), _AutocastInside():
        yield


@cache
def _is_composite(op: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"))


@cache
def _cuda_kernels() -> tuple[dict[str, Kernel], ModuleType]:
    """Qualified name of an operator -> the function that CUDA runs for it; and the module of the CUDA kernels."""
    kernels, _ = _load("default")
    of_cuda, module = _load("cuda")
    module.lib = _NoLibrary()  # type: ignore[attr-defined]
    module._cuda_device_of = lambda tensor: nullcontext()  # type: ignore[attr-defined]
    module._get_raw_stream = lambda index: 0  # type: ignore[attr-defined]
    context = SimpleNamespace(get_context=lambda device: 0)
    module.CUBLAS_Context = SimpleNamespace(get_instance=lambda: context)  # type: ignore[attr-defined]
    choose = getattr(module, "_gemm_4bit_use_custom_fn", None)
    if choose is not None:  # without its cache, which would have the results for one card
        module._gemm_4bit_use_custom_fn = choose.__wrapped__  # type: ignore[attr-defined]
    return {**kernels, **of_cuda}, module


def _load(backend: str) -> tuple[dict[str, Kernel], ModuleType]:
    """Loads a private copy of a backend's module: its kernels are collected, but not registered in torch."""
    import bitsandbytes

    found: dict[str, Kernel] = {}

    def collect(name: str, device_types: str) -> Callable[[Kernel], Kernel]:
        def keep(kernel: Kernel) -> Kernel:
            found[name] = kernel
            return kernel

        return keep

    spec = importlib.util.find_spec(f"bitsandbytes.backends.{backend}.ops")
    assert spec is not None, f"bitsandbytes has no {backend} backend"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as stack:
        stack.enter_context(replaced(bitsandbytes._ops, "register_kernel", collect))
        stack.enter_context(replaced(bitsandbytes.cextension, "lib", _NoLibrary()))
        if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
            stack.enter_context(replaced(torch._C, "_cuda_getCurrentRawStream", None, new=True))
        stack.enter_context(compile_when_called())
        spec.loader.exec_module(module)
    return found, module
