"""Every `>>>` example of the package runs and prints the given output. Only `units.py` converts bytes to GiB and
MiB."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
from support.paths import ROOT

FILES = sorted((ROOT / "axmem_trace").rglob("*.py"))
EXAMPLE = re.compile(r"^ *>>> ", re.MULTILINE)
WITH_EXAMPLES = [path for path in FILES if EXAMPLE.search(path.read_text(encoding="utf-8"))]
RENDERS = re.compile(r"\{[^{}]*/ ?\(?(1 ?<< ?[123]0|2 ?\*\* ?[123]0|1024|[KMG]IB|1e9)[^{}]*\} ?[KMG]i?B\b")
"""A division of bytes by a unit inside a text, followed by the unit's name."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_examples_print_what_they_say(path):
    found = doctest.testmod(importlib.import_module(module_name(path)))
    assert found.attempted
    assert not found.failed


def test_a_wrong_example_fails():
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda text: None).failed


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_units_are_rendered_in_one_file(path):
    if path.name == "units.py":
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    rendered = [line.strip() for line in lines if RENDERS.search(line)]
    assert rendered == [], "use units.format_bytes"


def test_a_unit_rendered_elsewhere_is_seen():
    assert RENDERS.search('f"{nbytes / (1 << 20):g} MiB for each"')
    assert not RENDERS.search('f"more than {MIN_LARGE_BYTES // MIB} (MiB)"')
