"""Today's estimate of a run that `scripts/measure_on_gpu.py` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from axmem_trace import estimate
from support.scripts import load_script

LIVE = ("after_load", "after_forward", "step_1", "step_2", "end")
"""The quantities that are live bytes. The only other quantity is `reserved`."""


def estimate_again(run: Mapping[str, Any]) -> dict[str, int]:
    """The estimate's figures by quantity, with the names of `gpu_figures.py`."""
    report = estimate(
        yaml.safe_load(run["content"]),
        overrides=run["overrides"],
        assumptions=run["assumptions"],
        gpu=run["gpu"]["asked_for"],
        hub="never",
        axolotl=run.get("axolotl", "0.19.0"),
        num_gpus=run.get("num_gpus", 1),
    )
    found: dict[str, int] = load_script("gpu_figures").summarise_report(report)
    return found
