"""Compare the allocator's simulation with PyTorch's own, move by move, on a machine without a GPU.

    python scripts/real_allocator.py LIB INCLUDE CUDA_INCLUDE [--seeds N] [--moves N] [--record FILE]

LIB holds `libc10.so` and `libc10_cuda.so` of a CUDA wheel of PyTorch, INCLUDE is that wheel's `torch/include`,
CUDA_INCLUDE the headers of the CUDA toolkit. A driver with memory and nothing else (`fake_cuda/`) replaces CUDA, so
that `c10::cuda::CUDACachingAllocator` runs. Needs g++ and nm. `--record` writes what PyTorch did, for the tests.

exit codes: 0 all equal; 1 a difference; 2 it can't be built
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parent
if str(SCRIPTS.parent) not in sys.path:
    sys.path.insert(0, str(SCRIPTS.parent))

from axmem_trace.allocator import parse_alloc_conf  # noqa: E402
from axmem_trace.allocator.blocks import Block  # noqa: E402
from axmem_trace.allocator.caching import CachingAllocator  # noqa: E402
from axmem_trace.errors import ConfigError  # noqa: E402

MIB = 1 << 20
FAKE_CUDA = SCRIPTS / "fake_cuda"
NUM_MOVES, NUM_STATES = 1500, 15
PLENTY_MIB = 200 << 10
"""A card that is never full."""

SETTINGS = (
    ("expandable_segments:False", PLENTY_MIB),
    ("expandable_segments:False", 1500),
    ("expandable_segments:True", PLENTY_MIB),
    ("expandable_segments:True", 700),
    ("expandable_segments:True", 2000),
    ("expandable_segments:False,roundup_power2_divisions:16", PLENTY_MIB),
    ("expandable_segments:False,roundup_power2_divisions:[1:2,4:8,64:16,>:0]", 1500),
    ("expandable_segments:True,roundup_power2_divisions:[16:4,>:8]", PLENTY_MIB),
    ("expandable_segments:True,roundup_power2_divisions:16", 1200),
    ("expandable_segments:False,large_segment_size_mb:64", 2000),
    ("expandable_segments:True,large_segment_size_mb:64", 1500),
    ("expandable_segments:False,max_split_size_mb:24", 1500),
    ("expandable_segments:False,max_split_size_mb:200", 1500),
    ("expandable_segments:False,max_split_size_mb:24,max_non_split_rounding_mb:40", 1500),
    ("expandable_segments:True,max_split_size_mb:24", 900),
    ("expandable_segments:False,garbage_collection_threshold:0.3,per_process_memory_fraction:0.9", 2500),
    ("expandable_segments:True,garbage_collection_threshold:0.3,per_process_memory_fraction:0.9", 2500),
    ("expandable_segments:False,garbage_collection_threshold:0.6,max_split_size_mb:30,per_process_memory_fraction:0.5",
     2500),
    ("expandable_segments:False,garbage_collection_threshold:0.3", 2500),
    ("expandable_segments:False,per_process_memory_fraction:0.7", 700),
    ("expandable_segments:True,roundup_power2_divisions:[256:1,512:2,>:4],per_process_memory_fraction:0.7", 700),
    ("expandable_segments:False,large_segment_size_mb:32,max_split_size_mb:100", 5000),
    ("expandable_segments:True,large_segment_size_mb:64,max_split_size_mb:128", 5000),
    ("expandable_segments:True,roundup_power2_divisions:[16:16,128:8,>:2],max_split_size_mb:64,"
     "garbage_collection_threshold:0.8,per_process_memory_fraction:0.95", 900),
    ("expandable_segments:False,roundup_power2_divisions:[1:8,2:4,4:2,>:1],max_split_size_mb:32,"
     "garbage_collection_threshold:0.6,per_process_memory_fraction:0.9,max_non_split_rounding_mb:21", 700),
)  # fmt: skip
"""What is tried, on a card of so many MiB."""

STRINGS = (*"""
 expandable_segments:true expandable_segments:1 expandable_segments:True, ,expandable_segments:True
 expandable_segments:True,,max_split_size_mb:30 expandable_segments expandable_segments: expandable_segments=True
 expandable_segments:True,expandable_segments:False Expandable_Segments:True unknown:1 allocate_on_load:1
 roundup_power2_divisions:0 roundup_power2_divisions:1 roundup_power2_divisions:3 roundup_power2_divisions:4
 roundup_power2_divisions:[] roundup_power2_divisions:[>:4] roundup_power2_divisions:[3:1]
 roundup_power2_divisions:[256:3] roundup_power2_divisions:[256:0,>:0] roundup_power2_divisions:[256:-1]
 roundup_power2_divisions:[256:1,512:2,1024:4,>:8] roundup_power2_divisions:[64:8,32:4,>:2]
 roundup_power2_divisions:[1:2,2:2] roundup_power2_divisions:[65536:2,>:2] roundup_power2_divisions:[131072:2]
 roundup_power2_divisions:[256:4,>:4,512:8] roundup_power2_divisions:[512:8,>:4],max_split_size_mb:64
 max_split_size_mb:10 max_split_size_mb:20 max_split_size_mb:21 max_split_size_mb:0 max_split_size_mb:-1
 max_split_size_mb:abc max_split_size_mb:30.5 max_split_size_mb:+30 max_split_size_mb:99999999999
 max_non_split_rounding_mb:10 max_non_split_rounding_mb:21 roundup_bypass_threshold_mb:5
 garbage_collection_threshold:0 garbage_collection_threshold:1 garbage_collection_threshold:-0.5
 garbage_collection_threshold:.5 garbage_collection_threshold:0.5x per_process_memory_fraction:0
 per_process_memory_fraction:1 per_process_memory_fraction:1.1 per_process_memory_fraction:abc
 large_segment_size_mb:10 large_segment_size_mb:11 large_segment_size_mb:32,max_split_size_mb:30
 max_split_size_mb:30,large_segment_size_mb:32 large_segment_size_mb:32,max_non_split_rounding_mb:20
 backend:native backend:foo pinned_use_background_threads:True pinned_use_background_threads:x
 pinned_num_register_threads:4 pinned_num_register_threads:3 pinned_num_register_threads:128
 pinned_num_register_threads:256 pinned_num_register_threads:0 pinned_reserve_segment_size_mb:10
 pinned_max_cached_size_mb:4 pinned_max_round_threshold_mb:3 pinned_free_catch_all:True
 max_split_size_mb:18446744073709551616 max_split_size_mb:18446744073709551615 max_split_size_mb:0x40
 roundup_power2_divisions:[256:1,,512:2] roundup_power2_divisions:[0:1] roundup_power2_divisions:[256:1,>:0,>:4]
 per_process_memory_fraction:0x1p-1 garbage_collection_threshold:0x1p-2 garbage_collection_threshold:nan
 garbage_collection_threshold:1e-3 per_process_memory_fraction:-0.1 expandable_segments:[True] : ,
 release_lock_on_cudamalloc:True release_lock_on_hipmalloc:True pinned_use_cuda_host_register:True
 pinned_use_hip_host_register:True graph_capture_record_stream_reuse:True throw_on_cudamalloc_oom:True
""".split(), "", "expandable_segments: True", "expandable_segments:True expandable_segments:False",
    "roundup_power2_divisions:[256:1 512:2]", "max_split_size_mb: 30 ")  # fmt: skip
"""Settings that PyTorch takes or refuses."""

Move = tuple[str, int, int]
"""`a`, which, how many bytes; `f`, which, 0; `e`, 0, 0."""


class State(NamedTuple):
    """What a move left behind. `segments` is 0 with expandable segments, which PyTorch does not count."""

    allocated: int
    reserved: int
    address: int
    out_of_memory: int
    retries: int
    segments: int


def make_moves(seed: int, count: int) -> list[Move]:
    """A life as training has it: sizes small, repeated, at the allocator's thresholds, or large; deaths in any order."""
    dice = random.Random(seed)
    moves: list[Move] = []
    live: list[int] = []
    death_rate = (0.4, 0.47, 0.5)[dice.randrange(3)]
    for number in range(count):
        if live and dice.random() < death_rate:
            place = dice.randrange(len(live)) if dice.random() < 0.6 else -1
            moves.append(("f", live.pop(place), 0))
        elif dice.random() < 0.003:
            moves.append(("e", 0, 0))
        else:
            moves.append(("a", number, _make_size(dice)))
            live.append(number)
    return moves


_THRESHOLDS = (
    1,
    512,
    513,
    1024,
    123456,
    MIB,
    MIB + 1,
    2 * MIB,
    8 * MIB,
    10 * MIB - 512,
    10 * MIB - 1,
    10 * MIB,
    10 * MIB + 1,
    16 * MIB,
    20 * MIB,
    20 * MIB + 1,
    32 * MIB,
    33 * MIB,
    64 * MIB,
    100 * MIB,
)


def _make_size(dice: random.Random) -> int:
    low, high = ((1, 5000), (1, MIB + 1024), (MIB, 40 * MIB), (MIB, 300 * MIB), (0, 0))[dice.randrange(5)]
    return dice.randrange(low, high) if high else _THRESHOLDS[dice.randrange(len(_THRESHOLDS))]


def simulate(text: str, capacity_bytes: int, moves: Sequence[Move]) -> list[State]:
    """What our allocator does.

    Raises:
        ConfigError: the settings are refused.
    """
    caching = CachingAllocator(parse_alloc_conf(text), capacity_bytes=capacity_bytes)
    accounts, live, states = caching.accounts, dict[int, Block](), []
    for kind, which, nbytes in moves:
        block = None
        if kind == "a":
            block = caching.malloc(nbytes, which)
            if block is not None:
                live[which] = block
        elif kind == "f":
            freed = live.pop(which, None)
            if freed is not None:
                caching.free(freed)
        else:
            caching.empty_cache()
        segments = accounts.num_segments if caching.expandable is None else 0
        states.append(
            State(
                accounts.allocated_bytes,
                accounts.reserved_bytes,
                block.address if block else 0,
                int(kind == "a" and block is None),
                accounts.num_retries,
                segments,
            )
        )
    return states


def digest(states: Sequence[State]) -> str:
    """Of every number of every state."""
    return hashlib.sha256("\n".join(" ".join(map(str, state)) for state in states).encode()).hexdigest()


def build(place: Path, lib: Path, include: Path, cuda_include: Path) -> Path:
    """The program that moves PyTorch's allocator, with its driver beside it."""
    library, source = place / "libcudart.so.13", FAKE_CUDA / "driver.cpp"
    wanted = _run("nm", "-D", "--undefined-only", str(lib / "libc10_cuda.so"))
    names = sorted(set(re.findall(r" U (cuda\w+)@libcudart", wanted)))
    stubs = "".join(f"__attribute__((weak)) int {name}(void) {{ abort(); }}\n" for name in names)
    (place / "stubs.c").write_text(f"#include <stdlib.h>\n{stubs}", encoding="utf-8")
    (place / "versions").write_text("libcudart.so.13 { global: cuda*; local: *; };\n", encoding="utf-8")
    _run("gcc", "-c", "-fPIC", str(place / "stubs.c"), "-o", str(place / "stubs.o"))
    _run(
        "g++",
        "-shared",
        "-fPIC",
        "-O1",
        f"-I{cuda_include}",
        str(source),
        str(place / "stubs.o"),
        f"-Wl,--version-script={place / 'versions'}",
        f"-Wl,-soname,{library.name}",
        "-o",
        str(library),
    )
    management = place / "libnvidia-ml.so.1"
    _run(
        "gcc",
        "-shared",
        "-fPIC",
        str(FAKE_CUDA / "management.c"),
        f"-Wl,-soname,{management.name}",
        "-o",
        str(management),
    )
    program = place / "drive"
    _run(
        "g++",
        "-std=c++20",
        "-O1",
        f"-I{include}",
        f"-I{cuda_include}",
        str(FAKE_CUDA / "drive.cpp"),
        f"-L{lib}",
        "-lc10_cuda",
        "-lc10",
        str(library),
        f"-Wl,-rpath,{place}:{lib}",
        "-Wl,--allow-shlib-undefined",
        "-o",
        str(program),
    )
    return program


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run_real(program: Path, lib: Path, text: str, capacity_bytes: int, moves: Sequence[Move]) -> list[State] | None:
    """What PyTorch does; None where it refuses the settings.

    Raises:
        RuntimeError: it met another CUDA than ours, or did not start.
    """
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{program.parent}:{lib}",
        "PYTORCH_ALLOC_CONF": text,
        "LD_PRELOAD": str(program.parent / "libcudart.so.13"),
        "FAKE_CUDA_BYTES": str(capacity_bytes),
    }
    lines = "\n".join({"a": f"a {which} {nbytes}", "f": f"f {which}", "e": "e"}[kind] for kind, which, nbytes in moves)
    done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, env=environment, check=False)
    if "CUDA error" in done.stderr or "shared libraries" in done.stderr:
        raise RuntimeError(done.stderr)
    if done.returncode:
        return None
    rows = (line.split() for line in done.stdout.splitlines())
    return [State(*(int(cell, 16 if place == 2 else 10) for place, cell in enumerate(row))) for row in rows]


def compare(program: Path, lib: Path, seeds: int, count: int) -> Iterator[dict[str, Any]]:
    """Every case, as it is recorded; `difference` says where the two differ."""
    cases = [(text, mebibytes, seed, count) for text, mebibytes in SETTINGS for seed in range(seeds)]
    cases += [(text, PLENTY_MIB, 0, 60) for text in STRINGS]
    for text, mebibytes, seed, number in cases:
        moves = make_moves(seed, number)
        real = run_real(program, lib, text, mebibytes * MIB, moves)
        try:
            ours: list[State] | None = simulate(text, mebibytes * MIB, moves)
        except ConfigError:
            ours = None
        case: dict[str, Any] = {"settings": text, "capacity_mib": mebibytes, "seed": seed, "moves": number}
        if real is not None:
            case |= {"digest": digest(real), "states": real[:: max(number // NUM_STATES, 1)]}
        yield {**case, "accepted": real is not None, "difference": find_difference(real, ours)}


def find_difference(real: Sequence[State] | None, ours: Sequence[State] | None) -> str:
    """Where two histories part; empty where they don't."""
    if real is None or ours is None:
        return "" if real is ours else f"PyTorch {'takes' if ours is None else 'refuses'} the settings"
    for number, (theirs, our) in enumerate(zip(real, ours, strict=True)):
        if theirs != our:
            return f"move {number}: PyTorch {theirs}, here {our}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("lib", "include", "cuda_include"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--moves", type=int, default=NUM_MOVES)
    parser.add_argument("--record", type=Path, metavar="FILE")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        try:
            program = build(Path(place), parsed.lib.resolve(), parsed.include, parsed.cuda_include)
        except (OSError, subprocess.CalledProcessError) as error:
            print(getattr(error, "stderr", "") or error, file=sys.stderr)
            return 2
        found = list(compare(program, parsed.lib.resolve(), parsed.seeds, parsed.moves))
    differences = [(case, text) for case in found if (text := case.pop("difference"))]
    for case, text in differences:
        print(f"{case['settings']!r}, {case['capacity_mib']} MiB, seed {case['seed']}: {text}")
    print(f"{len(found)} histories, {len(differences)} differ")
    if parsed.record:
        parsed.record.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n", encoding="utf-8")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
