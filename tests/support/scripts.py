"""A file of `scripts/` as a module, for tests."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from support.paths import SCRIPTS


def load_script(name: str) -> ModuleType:
    """`scripts/<name>.py`, run once as the module `<name>`."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
