"""Predict the GPU memory of an axolotl fine-tuning run, with no GPU, no weights and no network.

    import axmem_trace
    report = axmem_trace.estimate("config.yml")

Importing the package is fast; its functions and classes are imported at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axmem_trace.advice.fitting.fit import Fit, fit
    from axmem_trace.errors import AxmemError, ConfigError
    from axmem_trace.estimation import estimate
    from axmem_trace.integrations.axolotl_plugin import MemoryPlugin as MemoryPlugin
    from axmem_trace.report import Report
    from axmem_trace.session import Session

__version__ = "0.1.0"
__all__ = ["AxmemError", "ConfigError", "Fit", "Report", "Session", "__version__", "estimate", "fit"]

_HOMES = {
    "estimate": "axmem_trace.estimation",
    "fit": "axmem_trace.advice.fitting.fit",
    "Fit": "axmem_trace.advice.fitting.fit",
    "Report": "axmem_trace.report",
    "Session": "axmem_trace.session",
    "ConfigError": "axmem_trace.errors",
    "AxmemError": "axmem_trace.errors",
    "MemoryPlugin": "axmem_trace.integrations.axolotl_plugin",
}
"""The module that defines each name. Only axolotl imports `MemoryPlugin` (`plugins: [axmem_trace.MemoryPlugin]`). It is
not in `__all__`, because it can't be imported without axolotl."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
