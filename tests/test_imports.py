"""The fast imports change nothing permanently, in torch or in Python's garbage collector. If torch was imported before,
they change nothing at all."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT
from support.whole_runs import make_config

from axmem_trace.imports import collector_paused, compile_when_called


def run_fresh(code: str, *arguments: str) -> dict[str, object]:
    """The JSON that a new interpreter prints when it runs the code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


ESTIMATE = """
import gc, json, sys
import axmem_trace
gc_before = gc.isenabled(), gc.get_freeze_count() > 2_000
axmem_trace.estimate(json.loads(sys.argv[1]), hub="never")
import torch
print(json.dumps({
    "gc_as_before": (gc.isenabled(), gc.get_freeze_count() > 2_000) == gc_before,
    "compile_is_torchs": torch.compile.__module__ == "torch" and torch.compile.__name__ == "compile",
    "bitsandbytes": "bitsandbytes" in sys.modules,
    "inductor": "torch._inductor.compile_fx" in sys.modules,
}))
"""


def test_an_estimate_leaves_torch_and_the_collector_as_they_were(tmp_path: Path):
    config = make_config(tmp_path, adapter="qlora", load_in_4bit=True, lora_target_linear=True, lora_r=4, lora_alpha=8)
    found = run_fresh(ESTIMATE, json.dumps(config))
    assert found == {"gc_as_before": True, "compile_is_torchs": True, "bitsandbytes": True, "inductor": False}


BESIDE_TORCH = """
import json, sys
import torch
calls = []
def own_compile(*args, **kwargs):
    calls.append(kwargs)
    return args[0] if args else (lambda function: function)
torch.compile = own_compile
from axmem_trace.imports import import_libraries
import_libraries()
print(json.dumps({"same": torch.compile is own_compile, "imported": "bitsandbytes" in sys.modules, "calls": len(calls)}))
"""


def test_in_a_process_that_has_torch_nothing_is_imported_or_replaced():
    assert run_fresh(BESIDE_TORCH) == {"same": True, "imported": False, "calls": 0}


def test_a_function_decorated_during_import_is_compiled_once_at_its_first_call(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, object]] = []

    def fake_compile(function, **options):
        calls.append(options)
        return lambda *args: function(*args) + 100

    real = torch.compile
    with compile_when_called():

        @torch.compile
        def plain(x):
            """Adds one."""
            return x + 1

        @torch.compile(dynamic=False)
        def with_options(x):
            return x + 2

        later = torch.compile(lambda x: x + 3, mode="default")
    assert torch.compile is real
    monkeypatch.setattr(torch, "compile", fake_compile)
    assert calls == []
    assert (plain(0), plain(1), with_options(0), later(0)) == (101, 102, 102, 103)
    assert calls == [{}, {"dynamic": False}, {"mode": "default"}]
    assert (plain.__name__, plain.__doc__) == ("plain", "Adds one.")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_collector_is_as_it_was(enabled: bool, frozen: bool):
    assert gc.isenabled()
    gc.unfreeze()  # the objects that the suite's own fixture froze
    try:
        if frozen:
            gc.freeze()
        if not enabled:
            gc.disable()
        with collector_paused():
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
        assert gc.isenabled() is enabled
        assert (gc.get_freeze_count() > 2_000) is frozen  # Python 3.12 starts with some 400
    finally:
        gc.unfreeze()
        gc.enable()
