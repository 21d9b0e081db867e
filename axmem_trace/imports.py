"""The traced libraries' imports at their least cost, and Python's collector of reference cycles kept out of the way.

A plain import of torch, transformers, peft and bitsandbytes spends half its CPU time on two things that no estimate
needs: bitsandbytes asks for `torch.compile` while it is imported (`backends/default/ops.py`, `_try_torch_compile`),
which imports Inductor and some 550 modules more; and Python's collector walks what 3,300 modules leave behind, again
and again, and once more when the process ends. No torch here: this is where it is imported.
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

    In a process that has torch already nothing is replaced, not even for the moment.
    """
    if "torch" in sys.modules:
        return
    importlib.import_module("torch")
    with compile_when_called(), suppress(ImportError):
        importlib.import_module("bitsandbytes")


@contextmanager
def compile_when_called() -> Iterator[None]:
    """While open, what `torch.compile` decorates is compiled when it is first called, not now.

    A function so decorated does what it would have done; whoever never calls it never imports the compiler.
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


@contextmanager
def collector_paused() -> Iterator[None]:
    """While open, Python looks for reference cycles only where it is asked to, and not among what was there before.

    Afterwards the collector is as it was; objects that somebody had frozen stay frozen.
    """
    was_enabled, had_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if had_frozen:
            gc.freeze()
        if was_enabled:
            gc.enable()


def spare_what_is_there() -> None:
    """Exempts all that exists now from collection, until `collector_paused` closes: a collection then costs
    milliseconds, where a walk through the imported libraries costs a third of a second."""
    gc.freeze()


def leave_at_once() -> None:
    """The process is about to end: Python need not look for cycles among all that was imported before it does."""
    gc.disable()
    gc.freeze()
