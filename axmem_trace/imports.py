"""Imports the traced libraries fast, and pauses Python's collector of reference cycles.

A plain import of torch, transformers, peft and bitsandbytes spends half of its CPU time on two things that no estimate
needs. First, bitsandbytes calls `torch.compile` while it is imported (`backends/default/ops.py`, `_try_torch_compile`),
which imports Inductor and about 550 more modules. Second, Python's collector visits the objects of 3,300 modules many
times, and a last time when the process ends. This module does not import torch at its top: its function does.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from axmem_trace.tracing.patching import replaced


def import_libraries() -> None:
    """Imports torch and the libraries that transformers imports with every model.

    If the process has imported torch already, nothing is replaced, not even for a short time.
    """
    if "torch" in sys.modules:
        return
    importlib.import_module("torch")
    with compile_when_called(), suppress(ImportError):
        importlib.import_module("bitsandbytes")


@contextmanager
def compile_when_called() -> Iterator[None]:
    """While open, a function that `torch.compile` decorates is compiled when it is first called, not now.

    A function decorated in this way returns the same results. The compiler is imported only if the function is called.
    """
    import torch

    with replaced(torch, "compile", _compile_later):
        yield


def _compile_later(model: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Replaces `torch.compile`, as a function and as a decorator with options."""
    if model is None:
        return functools.partial(_compile_later, **options)
    function = model
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            import torch

            compiled.append(torch.compile(function, **options))
        return compiled[0](*args, **kwargs)

    return call


_FROZEN_AT_START = 2_000
"""More objects than any interpreter has frozen itself when it starts: Python 3.12 has frozen about 400 objects, the
other versions none."""
_open_pauses: list[bool] = []


@contextmanager
def collector_paused() -> Iterator[None]:
    """While open, Python looks for reference cycles only on request, and only among new objects.

    Afterwards the collector is as before; objects that were already frozen stay frozen.
    """
    was_enabled = gc.isenabled()
    # counting them takes a tenth of a second when all libraries are frozen, as they are inside another pause
    had_frozen = bool(_open_pauses) or gc.get_freeze_count() > _FROZEN_AT_START
    gc.disable()
    gc.freeze()
    _open_pauses.append(True)
    try:
        yield
    finally:
        _open_pauses.pop()
        gc.unfreeze()
        if had_frozen:
            gc.freeze()
        if was_enabled:
            gc.enable()


def spare_what_is_there() -> None:
    """Excludes all existing objects from collection until `collector_paused` closes. A collection then takes
    milliseconds; with the objects of the imported libraries, it takes a third of a second."""
    gc.freeze()


def leave_at_once() -> None:
    """Prepares for the end of the process: Python no longer needs to look for cycles among the imported objects."""
    gc.disable()
    gc.freeze()
