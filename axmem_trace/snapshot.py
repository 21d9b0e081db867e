"""The predicted history in the format of `torch.cuda.memory._snapshot()`, for PyTorch's own viewers.

`python -m torch.cuda._memory_viz trace_plot FILE` and https://docs.pytorch.org/memory_viz open the files of
`write_snapshot`. Format: `torch.cuda.memory._snapshot` (documented fields) and `THCPModule_memorySnapshot` in
torch/csrc/cuda/Module.cpp (the rest); torch 2.13. The differences from a real snapshot:

- `frames` contain no Python stack. They are, from the innermost to the outermost: the operator, the modules that
  contain it, phase and step;
- `time_us` counts allocations and frees, not microseconds;
- `alloc` entries have a `category`, which is the bucket. The viewer colours by it, as it does for profiles. Memory that
  the driver provides is in no bucket and has `NO_CATEGORY`;
- addresses are invented (see `axmem_trace.allocator.caching`).
"""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

from axmem_trace.allocator.accounts import TraceEntry
from axmem_trace.allocator.blocks import Block
from axmem_trace.allocator.caching import CachingAllocator
from axmem_trace.allocator.replay import Replay
from axmem_trace.allocator.sizes import list_divisions
from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.recipe.recipe import Allocator

PICKLE_PROTOCOL = 4
"""The newest pickle protocol that PyTorch's viewer reads (torch/utils/viz/MemoryViz.js, `unpickle`)."""
POOL_ID = (0, 0)
"""The default memory pool."""
NO_CATEGORY = "unknown"
"""The viewer's name for memory without a category. It must be one of the categories of the file. Otherwise the viewer
fails because of a misspelt name in its own code, and shows a blank page (MemoryViz.js, `annotate_snapshot`)."""
Frames = list[dict[str, Any]]


def make_snapshot(ledger: Ledger, allocator: Allocator, *, capacity_bytes: int = 0) -> dict[str, Any]:
    """Replays the ledger and returns it as `torch.cuda.memory._snapshot()` would at the end of the recording.

    Args:
        ledger, allocator, capacity_bytes: as for `axmem_trace.allocator.replay`. If the card is too small, the history
            ends with `oom`, and `segments` are the segments at that time.

    Returns:
        `segments`, `device_traces` (of one device), `allocator_settings`, `external_annotations` (phases and steps).
        Blocks in use and entries of the same operator share one list of frames.
    """
    caching = CachingAllocator(allocator, capacity_bytes=capacity_bytes, record_history=True)
    replay = Replay(ledger, caching)
    replay.run()
    history = caching.accounts.history or []
    segments = caching.list_segments(replay.blocks.values())
    return {
        "segments": [_make_segment(blocks, ledger) for blocks in segments],
        "device_traces": [[_make_entry(entry, ledger) for entry in history]],
        "allocator_settings": _make_settings(allocator),
        "external_annotations": _make_annotations(ledger, until=history[-1].tick if history else 0),
    }


def write_snapshot(path: str | Path, ledger: Ledger, allocator: Allocator, *, capacity_bytes: int = 0) -> None:
    """Writes `make_snapshot(...)` as `torch.cuda.memory._dump_snapshot` does: a pickle.

    Raises:
        OSError: the file cannot be written.
    """
    snapshot = make_snapshot(ledger, allocator, capacity_bytes=capacity_bytes)
    with open(path, "wb") as file:
        pickle.dump(snapshot, file, protocol=PICKLE_PROTOCOL)


def _make_segment(blocks: list[Block], ledger: Ledger) -> dict[str, Any]:
    """A segment, or a range of mapped pages of an expandable one."""
    head = blocks[0]
    allocated_bytes = sum(block.size for block in blocks if block.allocated)
    return {
        "device": 0,
        "address": head.address,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": allocated_bytes,
        "active_size": allocated_bytes,
        "requested_size": sum(block.requested_bytes for block in blocks if block.allocated),
        "stream": 0,
        "segment_type": "small" if head.pool.settings.is_small else "large",
        "segment_pool_id": POOL_ID,
        "is_expandable": head.pool.settings.grows,
        "frames": [],
        "blocks": [_make_block(block, ledger) for block in blocks],
    }


def _make_block(block: Block, ledger: Ledger) -> dict[str, Any]:
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": block.requested_bytes if block.allocated else 0,
        "state": "active_allocated" if block.allocated else "inactive",
        "frames": _frames_of(ledger.allocations[block.owner]) if block.allocated else [],
    }


def _make_entry(entry: TraceEntry, ledger: Ledger) -> dict[str, Any]:
    allocation = ledger.allocations[entry.owner] if entry.owner >= 0 else None
    made = {
        "action": entry.action,
        "device_free" if entry.action == "oom" else "addr": entry.address,
        "size": entry.size,
        "stream": 0,
        "time_us": entry.tick,
        "compile_context": "N/A",
        "user_metadata": "",
        "pool_id": POOL_ID,
        "frames": _frames_of(allocation) if allocation else [],
    }
    if entry.action == "alloc" and allocation:
        made["category"] = allocation.bucket
    elif entry.action in ("segment_alloc", "segment_map"):
        made["category"] = NO_CATEGORY
    return made


def _frames_of(allocation: Allocation) -> Frames:
    return _make_frames(allocation.op, allocation.module, f"{allocation.phase}, step {allocation.step}")


@cache
def _make_frames(op: str, module: str, phase: str) -> Frames:
    """`aten.mm.default`, then `model.layers.0`, `model.layers`, `model`, then the phase. The list is shared: do not
    change it."""
    parts = module.split(".") if module else []
    modules = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    frames = [{"name": op or "(no operator)", "filename": "op", "line": 0}]
    frames += [{"name": name, "filename": "module", "line": 0} for name in modules]
    return [*frames, {"name": phase, "filename": "phase", "line": 0}]


def _make_settings(allocator: Allocator) -> dict[str, Any]:
    divisions = list_divisions(allocator.roundup_power2_divisions)
    return {
        "PYTORCH_CUDA_ALLOC_CONF": allocator.settings,
        "max_split_size": allocator.max_split_size_bytes or -1,
        "garbage_collection_threshold": allocator.garbage_collection_threshold,
        "expandable_segments": allocator.expandable_segments,
        "pinned_num_register_threads": 1,
        "release_lock_on_cudamalloc": False,
        "pinned_use_cuda_host_register": False,
        "graph_capture_record_stream_reuse": False,
        "max_round_threshold": -1,  # for pinned host memory; no limit
        "max_cached_size": -1,
        "roundup_power2_divisions": {str(1 << index): number for index, number in enumerate(divisions)},
    }


def _make_annotations(ledger: Ledger, *, until: int) -> list[dict[str, Any]]:
    """Begin and end of each phase, in the form of `torch.profiler.record_function`."""
    marks = sorted((mark for mark in ledger.marks if mark.tick <= until), key=lambda mark: mark.tick)
    annotations = []
    for mark, end in zip(marks, [*(mark.tick for mark in marks[1:]), until], strict=False):
        name = f"{mark.phase}, step {mark.step}"
        for stage, tick in (("START", mark.tick), ("END", end)):
            annotations.append({"device": 0, "time_us": tick, "name": name, "stage": stage})
    return annotations
