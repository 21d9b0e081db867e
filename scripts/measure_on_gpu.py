"""Run a configuration for real on a CUDA GPU, with random weights, and write what it took beside the prediction.

    python scripts/measure_on_gpu.py CONFIG.yml [--set key=value]... [--assume key=value]... [-o FILE] [--history]

Needs no weights and no Hub. What the estimate only imitates (fused kernels, optimizers of other packages) is refused.
Commit the output under `tests/measured/`: the tests there hold the estimate to it from then on, without a GPU.

exit codes: 0 measured; 2 there is no GPU, or the configuration can't be run
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
for place in (SCRIPTS, SCRIPTS.parent):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from axmem_trace.cli import key_value  # noqa: E402
from axmem_trace.errors import ConfigError  # noqa: E402

SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "flash_attn")
NUM_FRAMES = 30
"""How many places of the code the breakdown tells."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", metavar="CONFIG.yml")
    add("--set", metavar="key=value", action="append", default=[], type=key_value, dest="overrides")
    add("--assume", metavar="key=value", action="append", default=[], type=key_value, dest="assumptions")
    add("-o", "--output", type=Path, metavar="FILE", help="write the JSON there instead of to standard output")
    add("--history", action="store_true", help="record the allocator's history: where the bytes of the peak came from")
    return parser


def find_refusal() -> str:
    """Why nothing can be measured on this machine; empty where it can."""
    import torch

    if not torch.backends.cuda.is_built():
        return "this PyTorch is built without CUDA, so nothing can be measured; an estimate needs no GPU"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU, so nothing can be measured; an estimate needs none"
    return ""


def measure(config: str, overrides: Sequence[str], assumptions: Sequence[str], *, history: bool) -> dict[str, Any]:
    """Predicts, then runs; the JSON's content."""
    import torch
    from gpu_run import check_runnable, run_recipe

    from axmem_trace import estimate
    from axmem_trace.recipe import read_recipe

    card = torch.cuda.get_device_properties(0)
    gpu = name_of_card(card.name, card.total_memory)
    recipe = read_recipe(config, overrides=overrides, assumptions=assumptions, gpu=gpu)
    check_runnable(recipe)
    report = estimate(config, overrides=overrides, assumptions=assumptions, gpu=gpu)
    after_load, phases, snapshot = run_recipe(recipe, history=history)
    measured = summarise_phases(after_load, phases)
    predicted = summarise_report(report)
    return {
        "schema_version": SCHEMA_VERSION,
        "config": Path(config).name, "content": Path(config).read_text(encoding="utf-8"),
        "overrides": list(overrides), "assumptions": list(assumptions),
        "gpu": {"name": card.name, "asked_for": gpu, "memory_bytes": card.total_memory,
                "compute_capability": [card.major, card.minor]},
        "versions": find_versions(),
        "measured": {**measured, "phases": phases}, "predicted": predicted, "comparison": compare(predicted, measured),
        "peak_by_code": find_peak_by_code(snapshot) if snapshot else [],
    }  # fmt: skip


def name_of_card(name: str, memory_bytes: int) -> str:
    """The card as the estimate knows it; its size alone where it does not know the name."""
    from axmem_trace.gpus import find_gpu

    try:
        find_gpu(name)
        return name
    except ConfigError:
        return f"{memory_bytes / (1 << 30):.2f}GiB"


def find_versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


QUANTITIES = ("after_load", "after_forward", "step_1", "step_2", "end", "reserved")
"""What is compared: bytes after loading and at the end of the first forward, the peaks of both steps, what is left at
the end (all of them live), and the most that was reserved."""


def summarise_phases(after_load: Mapping[str, int], phases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The quantities of a real run, of what was read at the end of each phase."""
    steps = {step: [phase for phase in phases if phase["step"] == step] for step in (1, 2)}
    forward = next(phase for phase in steps[1] if phase["phase"] == "forward")
    return {
        "after_load": after_load["end_bytes"], "after_forward": forward["end_bytes"],
        "step_1": max(phase["allocated_bytes"] for phase in steps[1]),
        "step_2": max(phase["allocated_bytes"] for phase in steps[2]),
        "end": phases[-1]["end_bytes"], "reserved": max(phase["reserved_bytes"] for phase in phases),
    }  # fmt: skip


def summarise_report(report: Any) -> dict[str, int]:
    """The same quantities of an estimate."""
    phases = report.phases
    return {
        "after_load": phases["load"].counted_end_bytes,
        "after_forward": phases["step_1"].phases["forward"].counted_end_bytes,
        "step_1": phases["step_1"].counted_bytes, "step_2": phases["step_2"].counted_bytes,
        "end": phases["step_2"].counted_end_bytes, "reserved": report.peak.reserved_bytes,
    }  # fmt: skip


def compare(predicted: Mapping[str, int], measured: Mapping[str, int]) -> dict[str, float]:
    """Signed relative errors: positive where too much was predicted."""
    return {quantity: predicted[quantity] / measured[quantity] - 1 for quantity in QUANTITIES}


def find_peak_by_code(snapshot: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was alive when most was, by the innermost Python line outside of torch that asked for it."""
    live: dict[int, tuple[int, str]] = {}
    total, most, at_peak = 0, 0, {}
    for entry in snapshot["device_traces"][0]:
        if entry["action"] == "alloc":
            live[entry["addr"]] = (entry["size"], place_of(entry.get("frames", ())))
            total += entry["size"]
            if total > most:
                most, at_peak = total, dict(live)
        elif entry["action"] == "free_completed" and entry["addr"] in live:
            total -= live.pop(entry["addr"])[0]
    by_place: dict[str, int] = {}
    for size, place in at_peak.values():
        by_place[place] = by_place.get(place, 0) + size
    ordered = sorted(by_place.items(), key=lambda item: -item[1])
    return [{"code": place, "bytes": size} for place, size in ordered[:NUM_FRAMES]]


def place_of(frames: Sequence[Mapping[str, Any]]) -> str:
    """`package/file.py:line function` of the innermost frame outside of torch, or of all where there is none."""
    python = [frame for frame in frames if frame["filename"].endswith(".py")]
    for frame in [*(frame for frame in python if "/torch/" not in frame["filename"]), *frames]:
        return f"{'/'.join(Path(frame['filename']).parts[-2:])}:{frame['line']} {frame['name']}"
    return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    refusal = find_refusal()
    if refusal:
        print(f"measure_on_gpu: {refusal}", file=sys.stderr)
        return 2
    try:
        found = measure(parsed.config, parsed.overrides, parsed.assumptions, history=parsed.history)
    except ConfigError as error:
        print(f"measure_on_gpu: {error}", file=sys.stderr)
        return 2
    text = json.dumps(found, indent=1)
    if parsed.output:
        parsed.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for quantity, error in found["comparison"].items():
        print(f"{quantity:14} {error:+.2%}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
