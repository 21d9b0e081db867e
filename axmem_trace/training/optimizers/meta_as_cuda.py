"""Makes torch treat meta tensors like CUDA tensors when it chooses an optimizer's implementation.

torch chooses `foreach` and allows `fused` if the device's type is in one of two lists (torch/utils/_foreach_utils.py,
`_get_foreach_kernels_supported_devices` and `_get_fused_kernels_supported_devices`). These contain "cuda" but not
"meta".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module

from axmem_trace.tracing.patching import replaced

_FUSED = "_get_fused_kernels_supported_devices"
_LISTS = ("_get_foreach_kernels_supported_devices", _FUSED)
_PLACES = (import_module("torch.utils._foreach_utils"), import_module("torch.optim.optimizer"))
"""`torch.optim.optimizer` has its own reference to both functions. It is not an attribute of `torch.optim`, so it is
imported by name."""


def _with_meta(supported_devices: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: [*supported_devices(), "meta"]


@contextmanager
def meta_as_cpu() -> Iterator[None]:
    """While it is open, meta parameters are updated like CPU parameters: `foreach=None` chooses the loop, and
    `fused=True` is accepted."""
    with ExitStack() as stack:
        for place in _PLACES:
            stack.enter_context(replaced(place, _FUSED, _with_meta(getattr(place, _FUSED))))
        yield


@contextmanager
def meta_as_cuda() -> Iterator[None]:
    """While it is open, `foreach=None` chooses the multi-tensor code for meta parameters, `fused=True` is accepted for
    them, and `torch.nn.utils.clip_grad_norm_` takes its foreach path. May be nested; restores the former state."""
    with ExitStack() as stack:
        for place in _PLACES:
            for name in _LISTS:
                stack.enter_context(replaced(place, name, _with_meta(getattr(place, name))))
        yield
