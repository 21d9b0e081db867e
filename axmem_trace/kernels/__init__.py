"""Where meta lies: one rule per kernel that a GPU runs otherwise. See `registry`."""

from __future__ import annotations

import importlib
import pkgutil

from axmem_trace.kernels import bitsandbytes


def import_rules() -> None:
    """Imports every room of this package for the rules that it registers."""
    for found in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        importlib.import_module(found.name)
    bitsandbytes.register_rules()
