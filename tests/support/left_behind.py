"""Checks that a test restores the process: no replaced functions of libraries, modes on torch's stacks, or global hooks
may remain."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator


def left_behind() -> list[str]:
    """One line for each difference from the state before the first test. It imports nothing."""
    return [*_replacements(), *_torch(), *_interpreter()]


_EXCEPTHOOK = sys.excepthook


def _interpreter() -> Iterator[str]:
    if not gc.isenabled():
        yield "the garbage collector is off"
    if sys.excepthook is not _EXCEPTHOOK:
        yield f"sys.excepthook is {sys.excepthook}"


def _replacements() -> Iterator[str]:
    patching = sys.modules.get("axmem_trace.tracing.patching")
    if patching is not None:
        yield from (f"{what} is still replaced" for what in patching.open_replacements())
        yield from (f"{what} is not what it was" for what in patching.changed_functions())


def _torch() -> Iterator[str]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "overrides"):
        return
    from torch.nn.modules import module
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    yield from (f"{mode} is on the dispatch modes' stack" for mode in _get_current_dispatch_mode_stack())
    yield from (f"{mode} is on the function modes' stack" for mode in _get_current_function_mode_stack())
    for name, hooks in vars(module).items():
        if name.startswith("_global_") and name.endswith("_hooks") and hooks:
            yield f"torch.nn.modules.module.{name} has {len(hooks)}"
    parametrize = sys.modules.get("torch.nn.utils.parametrize")
    if parametrize is not None and (parametrize._cache_enabled or parametrize._cache):
        yield "the cache of parametrised weights is on"
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        yield "a process group is open"
    if not torch.is_grad_enabled():
        yield "gradients are off"
    if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
        yield "autocast is on"
    if torch.get_default_dtype() is not torch.float32:
        yield f"the default dtype is {torch.get_default_dtype()}"
