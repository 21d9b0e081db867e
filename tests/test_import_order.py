"""Imports have one direction: each package imports only packages below it, and the light ones never import torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "axmem_trace"
LEVELS = tuple(
    """
    integrations __main__ cli render advice session estimation training config kernels parallel models imports report
    snapshot lengths allocator catalogue tracing folding recipe ledger quiet progress files model_facts notes errors units
    """.split()
)
"""From the highest to the lowest. A file may import from its own level and from those after it."""
EXCEPTIONS = {("report.report", "render"), ("advice.fitting.fit", "render")}
"""A report and the result of `fit` render themselves, in a notebook cell and on request."""
HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "pandas", "IPython", "rich")
LIGHT = tuple(
    """
    cli render advice config report lengths allocator catalogue folding recipe ledger __main__ session estimation snapshot
    quiet progress imports files model_facts notes errors units
    """.split()
)
CODE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*[name for name in {heavy} if name in sys.modules])
"""


@functools.cache
def modules() -> dict[str, Path]:
    """Every file of the package by its module's name, without `axmem_trace.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else ""] = path
    return found


def imports(path: Path, *, for_types: bool) -> Iterator[str]:
    """The names that a file imports from the package, lazily or not, without `axmem_trace.`: `package.module` or
    `package.name`.

    Args:
        for_types: include the imports under `if TYPE_CHECKING:`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inside in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in only_types and not for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "axmem_trace":
            for alias in node.names:
                yield f"{node.module}.{alias.name}".partition(".")[2]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("axmem_trace."))


def upward(name: str, path: Path) -> list[str]:
    """The names that a file imports from a higher level."""
    own = name.partition(".")[0]
    levels = {target.partition(".")[0] for target in imports(path, for_types=True)} & {*LEVELS}
    return [
        level for level in sorted(levels) if LEVELS.index(level) < LEVELS.index(own) and (name, level) not in EXCEPTIONS
    ]


def test_every_file_has_a_level():
    assert {name.partition(".")[0] for name in modules()} - {""} <= {*LEVELS}


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_no_file_imports_from_a_higher_level(name):
    assert upward(name, modules()[name]) == []


def test_an_upward_import_is_found(tmp_path):
    path = tmp_path / "lazy.py"
    path.write_text("def late():\n    from axmem_trace.training.run import Run\n    import axmem_trace.config\n")
    assert upward("tracing.lazy", path) == ["config", "training"]
    assert upward("cli.lazy", path) == []


def test_no_files_import_each_other_in_a_circle():
    files = modules()
    needs = {}
    for name, path in files.items():
        found = {each if each in files else each.rpartition(".")[0] for each in imports(path, for_types=False)}
        needs[name] = (found & {*files}) - {name, ""}
    while True:
        ready = [name for name, lower in needs.items() if not lower & {*needs}]
        if not ready:
            break
        for name in ready:
            del needs[name]
    assert needs == {}, "these wait for each other"


def heavy_modules_after_importing(*names: str) -> list[str]:
    """The modules of `HEAVY` that a new interpreter has loaded after it imported these names."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=HEAVY), *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    return done.stdout.split()


def light_modules() -> list[str]:
    return [name for name in modules() if name.partition(".")[0] in LIGHT]


def test_light_packages_import_nothing_heavy():
    names = light_modules()
    assert {"config.reader", "report.make", "render.html.page", "__main__"} <= {*names}
    assert heavy_modules_after_importing("axmem_trace", *[f"axmem_trace.{name}" for name in names]) == []


def test_a_heavy_import_is_found():
    assert "torch" in heavy_modules_after_importing("torch.nn", "axmem_trace.units")


def test_light_packages_never_name_torch_outside_functions_and_type_checking():
    """No light file has a top-level `import torch`. The test above cannot find that if a library is not installed."""
    for name in light_modules():
        for line in modules()[name].read_text(encoding="utf-8").splitlines():
            assert not line.startswith(tuple(f"{verb} {heavy}" for heavy in HEAVY for verb in ("import", "from"))), name
