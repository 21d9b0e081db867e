"""Compares the allocator's simulation with PyTorch's own allocator, move by move, on a machine without a GPU.

    python scripts/real_allocator.py LIB INCLUDE CUDA_INCLUDE [--seeds N] [--moves N] [--record FILE]

LIB contains `libc10.so` and `libc10_cuda.so` of a CUDA wheel of PyTorch, INCLUDE is that wheel's `torch/include`, and
CUDA_INCLUDE contains the headers of the CUDA toolkit. A driver that only supports memory (`fake_cuda/`) replaces CUDA,
so that `c10::cuda::CUDACachingAllocator` runs. Needs g++ and nm. `--record` writes PyTorch's results to a file, for the
tests.

exit codes: 0 all equal; 1 a difference; 2 it can't be built
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parent
for place in (SCRIPTS.parent, SCRIPTS):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from allocator_moves import MIB, PLENTY_MIB, SETTINGS, STRINGS, Move, make_moves  # noqa: E402

from axmem_trace.allocator import parse_alloc_conf  # noqa: E402
from axmem_trace.allocator.blocks import Block  # noqa: E402
from axmem_trace.allocator.caching import CachingAllocator  # noqa: E402
from axmem_trace.errors import ConfigError  # noqa: E402

FAKE_CUDA = SCRIPTS / "fake_cuda"
NUM_MOVES, NUM_STATES = 1500, 15


class State(NamedTuple):
    """The state after a move. `segments` is 0 with expandable segments, which PyTorch does not count."""

    allocated: int
    reserved: int
    address: int
    out_of_memory: int
    retries: int
    segments: int


def simulate(text: str, capacity_bytes: int, moves: Sequence[Move]) -> list[State]:
    """The states of our allocator.

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
    """A hash of every number in every state."""
    return hashlib.sha256("\n".join(" ".join(map(str, state)) for state in states).encode()).hexdigest()


def build(place: Path, lib: Path, include: Path, cuda_include: Path) -> Path:
    """Builds the program that controls PyTorch's allocator, with its driver."""
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
    """The states of PyTorch's allocator; None if it refuses the settings.

    Raises:
        RuntimeError: the program found another CUDA than this script's, or did not start.
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
    """Every case in its recorded form. `difference` describes the first difference."""
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
    """The first difference of two histories; empty if they are equal."""
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
