"""Reads measurements for a comparison: a snapshot of PyTorch's allocator, or a log of axolotl."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from axmem_trace.advice.compare import Column
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import block_bytes
from axmem_trace.units import GIB

LOGGED = {"max_allocated": "max_allocated", "device_reserved": "device_reserved"}
"""Rows of the section `figures`, and the names in axolotl's log (`AxolotlTrainer.log`:
`memory/max_allocated (GiB)`)."""
_LOG_FIGURE = re.compile(r"memory/(max_allocated|device_reserved)(?: ?\(GiB\))?['\"]?\s*[:=]\s*['\"]?(\d+(?:\.\d+)?)")


class _PlainData(pickle.Unpickler):
    """Reads a pickle of dicts, lists, strings and numbers only, as a snapshot is. Any other pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every class and function."""
        raise pickle.UnpicklingError(f"a snapshot must not contain {module}.{name}")


def read_snapshot(path: Path) -> Column:
    """The peaks in a file of `torch.cuda.memory._dump_snapshot` (axolotl's `profiler_steps` calls it), on the device
    with the most memory in use.

    Allocated bytes are requests rounded up to blocks of 512 bytes. The level before the recording is the level at its
    end minus the bytes that were added during the recording.

    Raises:
        ConfigError: the file is not such a snapshot.
    """
    try:
        with path.open("rb") as file:
            snapshot = _PlainData(file).load()
        figures = [_peaks(snapshot, device) for device in range(len(snapshot["device_traces"]))]
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(problem=f"{path} is no snapshot of PyTorch's allocator: {error}") from None
    best = max(figures, key=lambda each: each["max_allocated"], default={})
    if not best:
        raise ConfigError(problem=f"{path} has no device in it")
    return Column(label=str(path), sections={"figures": best}, measured=True)


def read_log(path: Path) -> Column:
    """The largest `memory/...` figures of an axolotl log.

    Raises:
        ConfigError: the log has no such figures.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(problem=f"{path} can't be read: {error.strerror or error}") from None
    found: dict[str, float] = {}
    for name, figure in _LOG_FIGURE.findall(text):
        found[name] = max(found.get(name, 0.0), float(ast.literal_eval(figure)))
    if not found:
        raise ConfigError(problem=f"{path} has no line with `memory/max_allocated` in it, as axolotl logs it")
    return Column(
        label=str(path),
        sections={"figures": {name: round(figure * GIB) for name, figure in found.items()}},
        measured=True,
    )


def _peaks(snapshot: Mapping[str, Any], device: int) -> dict[str, int]:
    segments = [segment for segment in snapshot["segments"] if segment["device"] == device]
    active = (block for segment in segments for block in segment["blocks"] if block["state"] == "active_allocated")
    allocated = sum(block_bytes(block.get("requested_size", block["size"])) for block in active)
    reserved = sum(segment["total_size"] for segment in segments)
    trace = snapshot["device_traces"][device]
    allocated_moves = [_signed(entry, "alloc", "free_completed", round_up=True) for entry in trace]
    reserved_moves = [
        _signed(entry, ("segment_alloc", "segment_map"), ("segment_free", "segment_unmap")) for entry in trace
    ]
    return {
        "max_allocated": _highest(allocated, allocated_moves),
        "device_reserved": _highest(reserved, reserved_moves),
    }


def _signed(
    entry: Mapping[str, Any], up: str | tuple[str, ...], down: str | tuple[str, ...], *, round_up: bool = False
) -> int:
    size = block_bytes(entry["size"]) if round_up else entry["size"]
    return size * ((entry["action"] in _tuple(up)) - (entry["action"] in _tuple(down)))


def _tuple(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else words


def _highest(at_end: int, moves: Iterable[int]) -> int:
    """The highest level of a history that ends at `at_end`."""
    moves = list(moves)
    level = highest = at_end - sum(moves)
    for move in moves:
        level += move
        highest = max(highest, level)
    return highest
