"""`CudaMode`: while it is open, torch functions treat meta tensors like tensors on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from axmem_trace.tracing.autocast import Autocast
from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.patching import replaced, replaced_all
from axmem_trace.tracing.recording_mode import RecordingMode

_COMPOSITE = frozenset({F.multi_head_attention_forward, F.normalize, F.softmin, F.gumbel_softmax})
"""Python functions that call other torch functions: the mode must see these inner calls too."""


class CudaMode(TorchFunctionMode):
    """Applies autocast's casts and the function rules, in forward, backward and recomputation.

    torch switches a function mode off while it handles an overridable function. `Tensor.backward` is such a function,
    so the mode is switched on again before the autograd engine starts.
    """

    def __init__(self, recording: RecordingMode) -> None:
        super().__init__()
        self.context = recording.context
        self._rules = recording.rules.functions
        self.autocast = Autocast()

    @called_by_libraries
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PLAIN:
            return call_original(func, args, kwargs)
        args, kwargs = self.autocast.apply(func, args, kwargs)
        rule = self._rules.get(func)
        if rule is not None:
            return rule(self.context, func, args, kwargs)
        if func in _COMPOSITE:
            with _bodies_run(), self:
                return call_original(func, args, kwargs)
        return call_original(func, args, kwargs)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Opens the mode. While it is open, library functions that read the device or autocast's state return the same
        as on a GPU."""
        with ExitStack() as stack:
            for target, name, replacement in (*self._torch_answers(), *_transformers_answers()):
                stack.enter_context(replaced(target, name, called_by_libraries(replacement)))
            stack.enter_context(self)
            stack.callback(self.autocast.clear)
            yield

    def _torch_answers(self) -> Iterator[tuple[Any, str, Any]]:
        run_backward, clear_cache = torch.autograd._engine_run_backward, torch.clear_autocast_cache
        init_autocast, cast_inputs = torch.amp.autocast_mode.autocast.__init__, torch.amp.autocast_mode._cast

        def run_backward_in_mode(*args: Any, **kwargs: Any) -> Any:
            if self in torch.overrides._get_current_function_mode_stack():
                return call_original(run_backward, args, kwargs)
            with self:
                return call_original(run_backward, args, kwargs)

        def clear_both_caches() -> None:
            self.autocast.clear()
            clear_cache()

        def init_for_cuda(autocast: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
            call_original(init_autocast, (autocast, _as_cuda(device_type), *args), kwargs)

        def cast_as_cuda(value: Any, device_type: str, dtype: torch.dtype) -> Any:
            return cast_inputs(value, "meta" if device_type == "cuda" else device_type, dtype)

        yield torch.amp.autocast_mode, "_cast", cast_as_cuda
        yield torch.autograd, "_engine_run_backward", run_backward_in_mode
        yield torch, "clear_autocast_cache", clear_both_caches
        yield torch.amp.autocast_mode.autocast, "__init__", init_for_cuda
        yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
        yield torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True
        for home in (torch, torch.amp, torch.amp.autocast_mode):
            for name in ("is_autocast_enabled", "get_autocast_dtype", "is_autocast_available"):
                if hasattr(home, name):
                    yield home, name, _with_cuda_for_meta(getattr(home, name))


@contextmanager
def _bodies_run() -> Iterator[None]:
    """Makes `torch.nn.functional` run the bodies of its functions as if no mode overrides them."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    with replaced_all(F, dict.fromkeys(names, lambda *tensors: False)):
        yield


def _as_cuda(device_type: str) -> str:
    return "cuda" if device_type == "meta" else device_type


def _with_cuda_for_meta(function: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*args: Any, **kwargs: Any) -> Any:
        asked = {key: _as_cuda(each) for key, each in kwargs.items()}
        return call_original(function, tuple(_as_cuda(each) for each in args), asked)

    return ask


def _transformers_answers() -> Iterator[tuple[Any, str, Any]]:
    """Replacements of transformers' `maybe_autocast`, which does nothing on meta; models import it by name."""
    generic = sys.modules.get("transformers.utils.generic")
    original = getattr(generic, "maybe_autocast", None)
    if original is None:
        return

    def maybe_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return call_original(original, (_as_cuda(device_type), *args), kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("transformers") and getattr(module, "__dict__", {}).get("maybe_autocast") is original:
            yield module, "maybe_autocast", maybe_autocast


_PLAIN = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in """
    shape dtype device is_meta requires_grad grad data is_leaf grad_fn layout ndim T mT is_sparse is_nested is_cpu
    is_cuda is_quantized
    """.split()
)
"""Attributes that code reads very often and that no rule needs."""
