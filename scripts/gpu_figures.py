"""The figures that `measure_on_gpu.py` compares: the same quantities of a real run and of an estimate. No torch
here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NUM_FRAMES = 30
"""The number of code lines in the breakdown."""
QUANTITIES = ("after_load", "after_forward", "step_1", "step_2", "end", "reserved")
"""The compared quantities: live bytes after loading, at the end of the first step's last forward and at the end of the
second step; the peaks of both steps; and the largest reserved memory."""


def summarise_phases(after_load: Mapping[str, int], phases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The quantities of a real run, from the figures that were read at the end of each phase."""
    steps = {step: [phase for phase in phases if phase["step"] == step] for step in (1, 2)}
    forwards = [phase for phase in steps[1] if phase["phase"] == "forward"]
    return {
        "after_load": after_load["end_bytes"],
        "after_forward": forwards[-1]["end_bytes"],
        "step_1": max(phase["allocated_bytes"] for phase in steps[1]),
        "step_2": max(phase["allocated_bytes"] for phase in steps[2]),
        "end": steps[2][-1]["end_bytes"],
        "reserved": max(phase["reserved_bytes"] for phase in (after_load, *phases)),
    }


def summarise_report(report: Any) -> dict[str, int]:
    """The same quantities of an estimate."""
    phases = report.phases
    return {
        "after_load": phases["load"].counted_end_bytes,
        "after_forward": phases["step_1"].phases["forward"].counted_end_bytes,
        "step_1": phases["step_1"].counted_bytes,
        "step_2": phases["step_2"].counted_bytes,
        "end": phases["step_2"].counted_end_bytes,
        "reserved": report.peak.reserved_bytes,
    }


def compare(predicted: Mapping[str, int], measured: Mapping[str, int]) -> dict[str, float]:
    """Signed relative errors: positive if too much was predicted."""
    return {quantity: predicted[quantity] / measured[quantity] - 1 for quantity in QUANTITIES}


def find_peak_by_code(snapshot: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The memory that was alive at the peak, by the innermost Python line outside of torch that allocated it."""
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
    """`package/file.py:line function` of the innermost frame outside of torch; if there is none, of the innermost
    frame."""
    python = [frame for frame in frames if frame["filename"].endswith(".py")]
    for frame in [*(frame for frame in python if "/torch/" not in frame["filename"]), *frames]:
        return f"{'/'.join(Path(frame['filename']).parts[-2:])}:{frame['line']} {frame['name']}"
    return "unknown"
