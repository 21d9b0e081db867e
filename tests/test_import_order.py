"""Arrows point one way: these rooms never import torch, so that `--help` and config errors are instant."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.paths import ROOT

HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "pandas", "IPython")
LIGHT_ROOMS = ("recipe", "catalogue", "allocator", "report", "render")
LIGHT_FILES = (
    "__init__",
    "__main__",
    "cli",
    "errors",
    "facts",
    "gpus",
    "imports",
    "ledger",
    "notes",
    "snapshot",
    "units",
)
CODE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*[name for name in {heavy} if name in sys.modules])
"""


def heavy_modules_after_importing(*names: str) -> list[str]:
    """Which of `HEAVY` a fresh interpreter holds after importing these."""
    done = subprocess.run([sys.executable, "-c", CODE.format(heavy=HEAVY), *names],
                          capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)  # fmt: skip
    return done.stdout.split()


def light_modules() -> list[str]:
    package = ROOT / "axmem_trace"
    names = [f"axmem_trace.{name}" for name in LIGHT_FILES if (package / f"{name}.py").exists()]
    for room in LIGHT_ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            names.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [name.removesuffix(".__init__") for name in names]


def test_light_rooms_import_nothing_heavy():
    names = light_modules()
    assert {"axmem_trace", "axmem_trace.report.make", "axmem_trace.render.html.page", "axmem_trace.__main__"} <= set(
        names
    )
    assert heavy_modules_after_importing(*names) == []


def test_the_story_imports_nothing_heavy_before_it_is_told():
    pytest.importorskip("axmem_trace.estimate")
    assert heavy_modules_after_importing("axmem_trace.estimate") == []


def test_this_test_can_fail():
    """The same question about a module that does import torch."""
    assert "torch" in heavy_modules_after_importing("torch.nn", "axmem_trace.units")


def test_light_rooms_never_name_torch_outside_functions_and_type_checking():
    """What a lazy import could hide from the test above: no top-level `import torch` in any light file."""
    for name in light_modules():
        path = ROOT.joinpath(*name.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        for line in source.splitlines():
            assert not line.startswith(tuple(f"{verb} {heavy}" for heavy in HEAVY for verb in ("import", "from"))), name
