"""Predicted and measured figures, by phase: a table for the log, and one entry in `output_dir/axmem_trace.json`.

Each rank other than 0 writes its figures to a separate file, which rank 0 collects. A collective operation is not used,
because it could hang if a rank has failed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axmem_trace.integrations.peaks import FIGURES, PhasePeaks
from axmem_trace.units import gib

if TYPE_CHECKING:
    from axmem_trace.report import Report
    from axmem_trace.report.types import PhaseUse

FILE_NAME = "axmem_trace.json"
SCHEMA_VERSION = 1
PHASES = {"load": "loading", "step_1": "first step", "step_2": "later steps", "eval": "evaluation", "other": "other"}
_SHOWN = ("allocated", "reserved")
_SPREAD = 0.01
"""If the figures of ranks differ by more than this share, the ranks are named."""

Phases = Mapping[str, Mapping[str, Any]]
"""Phase -> figure -> bytes, and `upper_limits`: the figures that the phase did not exceed."""


def describe_phases(measured: Mapping[str, PhasePeaks]) -> dict[str, dict[str, Any]]:
    """The measured figures of one rank, as plain values."""
    return {
        phase: {
            **{f"{figure}_bytes": peaks.bytes_of(figure) for figure in FIGURES},
            "upper_limits": [f"{figure}_bytes" for figure in FIGURES if peaks.is_limit(figure)],
        }
        for phase, peaks in measured.items()
    }


def leave_for_rank_0(folder: Path, rank: int, entry: Mapping[str, Any]) -> None:
    """Writes the figures of one rank to a file for rank 0."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(_path_of(folder, rank), entry)


def forget_ranks(folder: Path) -> None:
    """Removes the files of an earlier run."""
    for path in folder.glob(".axmem_trace.rank*.json"):
        path.unlink(missing_ok=True)


def collect_ranks(folder: Path, ranks: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Reads the figures of these ranks, waits for missing ones, and removes the files."""
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    while True:
        for rank in ranks:
            path = _path_of(folder, rank)
            if rank not in found and path.exists():
                found[rank] = json.loads(path.read_text(encoding="utf-8"))
                path.unlink(missing_ok=True)
        if len(found) == len(ranks) or time.monotonic() > end:
            return [found[rank] for rank in sorted(found)]
        time.sleep(0.2)


def append_run(path: Path, run: Mapping[str, Any]) -> Path:
    """Adds a run to the file, and returns the path that was written. A file with other content is not changed."""
    runs: list[Any] = []
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            runs = before["runs"]
            assert isinstance(runs, list)
            assert before["schema_version"] == SCHEMA_VERSION
        except (ValueError, KeyError, TypeError, AssertionError):
            return append_run(path.with_name(f"{path.stem}.new.json"), run)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {"schema_version": SCHEMA_VERSION, "runs": [*runs, run]})
    return path


def compare_lines(report: Report | None, ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table, in GiB. Each measured figure is that of the rank with the largest value."""
    yield f"{'axmem_trace: GiB':<20}" + "".join(f"{name:^33}".rstrip().ljust(33) for name in _SHOWN).rstrip()
    yield " " * 20 + "".join(f"{'predicted':>12}{'measured':>12}{'error':>9}" for _ in _SHOWN)
    for phase, words in PHASES.items():
        use = report.phases.get(phase) if report else None
        cells = [_cells(_predicted(use, figure), _most(ranks, phase, figure)) for figure in _SHOWN]
        if any(cell.strip() for cell in cells) and (phase != "other" or _other_is_highest(ranks)):
            yield (f"  {words:<18}" + "".join(cells)).rstrip()
    yield from _remarks(ranks)


def _cells(predicted: int, measured: tuple[int, bool]) -> str:
    nbytes, is_limit = measured
    shown = f"{'<= ' if is_limit else ''}{gib(nbytes):.2f}" if nbytes else ""
    error = ""
    if predicted and nbytes and not is_limit:
        error = f"{100 * (predicted - nbytes) / nbytes:+.1f} %"
    return f"{f'{gib(predicted):.2f}' if predicted else '':>12}{shown:>12}{error:>9}"


def _predicted(use: PhaseUse | None, figure: str) -> int:
    return 0 if use is None else use.counted_bytes if figure == "allocated" else use.reserved_bytes


def _most(ranks: Sequence[Mapping[str, Any]], phase: str, figure: str) -> tuple[int, bool]:
    """The most bytes of any rank, and whether only an upper limit is known."""
    found = [rank["phases"][phase] for rank in ranks if phase in rank["phases"]]
    name = f"{figure}_bytes"
    return max(((each[name], name in each["upper_limits"]) for each in found), default=(0, False))


def _other_is_highest(ranks: Sequence[Mapping[str, Any]]) -> bool:
    other, is_limit = _most(ranks, "other", "reserved")
    return not is_limit and other > max(_most(ranks, phase, "reserved")[0] for phase in PHASES if phase != "other")


def _remarks(ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not any(rank["phases"] for rank in ranks):
        yield "  nothing was measured: no CUDA device was used"
    tops = {
        rank["rank"]: max((each["reserved_bytes"] for each in rank["phases"].values()), default=0) for rank in ranks
    }
    if tops and max(tops.values()) > (1 + _SPREAD) * min(tops.values()):
        low, high = min(tops, key=lambda rank: tops[rank]), max(tops, key=lambda rank: tops[rank])
        yield f"  ranks differ: reserved {gib(tops[low]):.2f} on rank {low}, {gib(tops[high]):.2f} on rank {high}"
    missing = [rank for rank in ranks if rank.get("failed")]
    for rank in missing:
        yield f"  rank {rank['rank']} failed: {rank['failed']}"


def _path_of(folder: Path, rank: int) -> Path:
    return folder / f".axmem_trace.rank{rank}.json"


def _write(path: Path, value: Any) -> None:
    """Writes the file completely or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
