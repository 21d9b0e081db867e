"""The door of this package: the kernels' functions put where transformers looks for them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from axmem_trace.notes import Note
from axmem_trace.tracing.kernels.attention.card import num_sms
from axmem_trace.tracing.kernels.registry import KernelContext
from axmem_trace.tracing.kernels.scans.causal_conv import causal_conv1d_fn
from axmem_trace.tracing.kernels.scans.selective_scan import selective_scan_fn
from axmem_trace.tracing.kernels.scans.ssd import mamba_chunk_scan_combined
from axmem_trace.tracing.kernels.scans.ssd_split import mamba_split_conv1d_scan_combined

Kernel = Callable[..., Any]

_MAMBA = "mamba-ssm 2.3.2"
_CONV = "causal-conv1d 1.7.0"

KERNELS: dict[str, tuple[Kernel, str]] = {
    "causal_conv1d_fn": (causal_conv1d_fn, _CONV),
    "mamba_selective_scan": (selective_scan_fn, _MAMBA),
    "mamba2_chunk_scan": (mamba_chunk_scan_combined, _MAMBA),
    "mamba2_split_conv1d_scan_combined": (mamba_split_conv1d_scan_combined, _MAMBA),
}
"""By the name that a modeling file gives to the function, the kernel that takes its place and the package it is in."""


@contextmanager
def install_scans(context: KernelContext) -> Iterator[None]:
    """While open, every loaded modeling file finds mamba-ssm, causal-conv1d and flash-linear-attention installed.

    Source: transformers 5 `integrations/hub_kernels.py`, `use_kernel_func_from_hub_with_fallback`: the function in the
    modeling file is the package's where the package can be imported, with the keyword arguments that it knows; else it
    is a loop in torch, whose memory is no measure of the kernel's.
    """
    with ExitStack() as stack:
        for module in _modeling_files():
            for name, (kernel, package) in KERNELS.items():
                if hasattr(vars(module).get(name), "__wrapped__"):
                    stack.enter_context(patch.object(module, name, _adapted(context, kernel, package)))
        yield


def _modeling_files() -> list[ModuleType]:
    """Those that are loaded: the model has been built."""
    return [
        module
        for name, module in list(sys.modules.items())
        if module is not None and name.startswith("transformers.models.") and ".modeling_" in name
    ]


def _adapted(context: KernelContext, kernel: Kernel, package: str) -> Kernel:
    """The kernel, called with the keyword arguments that it knows, and named in the report once it runs."""
    known = frozenset(inspect.signature(kernel).parameters)
    card = {"num_sms": num_sms(context)} if "num_sms" in known else {}

    @functools.wraps(kernel)
    def run(*args: Any, **kwargs: Any) -> Any:
        context.note(_note(package))
        return kernel(*args, **{key: value for key, value in kwargs.items() if key in known}, **card)

    return run


def _note(package: str) -> Note:
    name = package.split()[0]
    text = f"state-space layers as the kernels of {package} keep memory; without that package transformers runs its "
    text += "own loop in torch, which takes several times as much (axolotl does not install it by itself)"
    return Note(kind="ruled", key=name, text=text)
