"""The estimate against PyTorch's own CUDA build, run without a GPU: every JSON file of `without_gpu/`.

`scripts/cuda_without_gpu.py` says what these runs are. All live bytes are to be the same, but for the one table of code
values that bitsandbytes keeps for itself (1 KiB, `functional.py` `name2qmap`); reserved bytes within half a percent.
Files of another transformers are left out: its models may keep other tensors.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
FILES = sorted((HERE / "without_gpu").glob("*.json"))
FAST = ("full-fused", "lora-fp16-scaler", "qlora-paged", "full-evaluated")
LIVE = ("after_load", "after_forward", "step_1", "step_2", "end")
CODE_TABLE_BYTES = 1024


@cache
def estimate_again(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Today's estimate, and what was measured."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    from gpu_figures import summarise_report

    from axmem_trace import estimate

    run = json.loads(path.read_text(encoding="utf-8"))
    for library in ("transformers", "peft", "bitsandbytes"):
        if run["versions"][library] != version(library):
            pytest.skip(f"was measured with {library} {run['versions'][library]}")
    report = estimate(
        yaml.safe_load(run["content"]), overrides=run["overrides"], assumptions=run["assumptions"],
        gpu=run["gpu"]["asked_for"], hub="never",
    )  # fmt: skip
    return summarise_report(report), run["measured"]


def cases():
    for path in FILES:
        yield pytest.param(path, id=path.stem, marks=() if path.stem in FAST else pytest.mark.slow)


@pytest.mark.parametrize("path", cases())
def test_live_bytes_are_the_same(path):
    predicted, measured = estimate_again(path)
    allowed = CODE_TABLE_BYTES if "load_in_4bit: true" in path.read_text(encoding="utf-8") else 0
    assert {name: predicted[name] - measured[name] for name in LIVE} == dict.fromkeys(LIVE, -allowed)


@pytest.mark.parametrize("path", cases())
def test_reserved_bytes(path):
    predicted, measured = estimate_again(path)
    assert predicted["reserved"] == pytest.approx(measured["reserved"], rel=0.005)


def test_every_ready_recipe_was_run():
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    from gpu_recipes import RECIPES

    assert {path.stem for path in FILES} == set(RECIPES)
