"""The public names of `import axmem_trace`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.paths import ROOT

import axmem_trace


def test_public_names_of_the_package_are_no_modules():
    """`axmem_trace.estimate` is the function, whichever modules have been imported before."""
    code = "import axmem_trace.estimation, axmem_trace; assert callable(axmem_trace.estimate), axmem_trace.estimate"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    package = ROOT / "axmem_trace"
    modules = {path.name.removesuffix(".py") for path in package.iterdir()}
    assert not modules & set(axmem_trace.__all__), "a submodule would take the place of what the package offers"


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    assert {"estimate", "Report", "ConfigError", "AxmemError"} <= set(dir(axmem_trace))
    with pytest.raises(AttributeError, match="module 'axmem_trace' has no attribute 'estimates'"):
        _ = axmem_trace.estimates
