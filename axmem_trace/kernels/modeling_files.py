"""Finds transformers' modeling files, in which kernels replace names during a trace."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def modeling_module(name: str) -> ModuleType | None:
    """`transformers.models.<name>.modeling_<name>`, if the installed transformers has it."""
    try:
        return importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    except ImportError:
        return None


def loaded_modeling_files() -> list[ModuleType]:
    """The loaded modeling files; call it after the model has been built."""
    return [
        module
        for name, module in list(sys.modules.items())
        if module is not None and name.startswith("transformers.models.") and ".modeling_" in name
    ]
