#!/usr/bin/env python3
"""Measures the CPU seconds and the peak memory of an estimate in a new process, and writes the tables of docs/speed.md
and README.md.

    python scripts/benchmark.py                     # all runs, three times each; prints the table
    python scripts/benchmark.py --only 8B --repeat 1
    python scripts/benchmark.py --write             # the tables into docs/speed.md and README.md

- *floor*: a process that only imports the five libraries, without this package's shortcuts; it alternates with the runs
  of the command;
- *first answer*: the command, from start to exit;
- *other tokens*: in a process that has made one estimate, the same estimate with another `sequence_len`;
- *trace*: in another process, only the building and tracing of the model, after all imports;
- *MemTracker*: PyTorch's own tool on the same step under FakeTensorMode (`scripts/mem_tracker.py`), if it can run the
  step.

Of several repetitions, the smallest value counts, because other work on the machine can only add time. CPU seconds are
user + system time of all threads, with one thread for OpenMP.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
DOCUMENT = ROOT / "docs/speed.md"
README = ROOT / "README.md"
BLOCK = "benchmark"
README_BLOCK = "speed"
README_COLUMNS = 8
"""The number of columns from the left of the table in docs/speed.md."""
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

import marked_blocks  # noqa: E402

PLAIN_STEP = (
    "plugins=[]",
    "attn_implementation=sdpa",
    "sample_packing=false",
    "sequence_len=4096",
    "gradient_accumulation_steps=1",
)
"""A step that MemTracker can run too: no fused loss, no FlashAttention, no packing."""
TRACKER_LIMIT = 180
"""CPU seconds after which MemTracker is stopped."""
ANSWERED = (0, 2)
"""Exit codes with figures: 0, and 2 for a run that would fail (its figures are reported too)."""


@dataclass(frozen=True)
class Case:
    """One estimate: a configuration of configs/, and changes to it."""

    name: str
    layers: int
    config: str
    settings: tuple[str, ...] = ()
    tracked: bool = False
    """Whether MemTracker runs the same case."""


CASES = (
    Case("Llama 3.1 8B QLoRA", 32, "configs/llama-3.1/8b/qlora.yml"),
    Case("Llama 3.1 70B QLoRA", 80, "configs/llama-3.1/70b/qlora.yml"),
    Case("Llama 3.1 8B full", 32, "configs/llama-3.1/8b/full.yml", PLAIN_STEP, tracked=True),
    Case("Llama 3.1 405B full, cut to 8 layers", 8, "configs/llama-3.1/8b/full.yml",
         (*PLAIN_STEP, "base_model=meta-llama/Llama-3.1-405B", "overrides_of_model_config.num_hidden_layers=8"),
         tracked=True),
    Case("Llama 3.1 405B full", 126, "configs/llama-3.1/8b/full.yml",
         (*PLAIN_STEP, "base_model=meta-llama/Llama-3.1-405B")),
    Case("DeepSeek-V3 full", 61, "configs/llama-3.1/8b/full.yml",
         (*PLAIN_STEP, "base_model=deepseek-ai/DeepSeek-V3")),
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of a process: CPU seconds (user + system) and its peak resident set in bytes."""

    cpu_seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Row:
    """The figures of a case. `tracker` has MemTracker's figures; None if it did not run or failed (see `stopped`)."""

    case: Case
    floor: Cost
    first: Cost
    trace_cpu_seconds: float
    other_tokens_cpu_seconds: float
    allocated_bytes: int
    tracker: Cost | None = None
    tracker_bytes: int = 0
    stopped: str = ""


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    code: int
    cost: Cost
    output: str = ""
    """The text of both streams."""


def run_process(command: Sequence[str]) -> Finished:
    """Runs one process. Its cost is the kernel's count for the process and for the children that it waited for.

    Source: getrusage(2): `ru_maxrss` is in KiB on Linux, in bytes on macOS. On Linux it is at least the parent's value
    when the process was made. So this script imports no torch, to stay small.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished(process.returncode, Cost(usage.ru_utime + usage.ru_stime, rss), output)


def least(costs: Sequence[Cost]) -> Cost:
    """The smallest CPU seconds and the smallest peak of several repetitions. The two may come from different
    repetitions."""
    return Cost(min(cost.cpu_seconds for cost in costs), min(cost.peak_rss_bytes for cost in costs))


def run_checked(command: Sequence[str], accepted: Sequence[int] = (0,)) -> Finished:
    """One run.

    Raises:
        RuntimeError: the exit code was not accepted; the message has the end of the output.
    """
    finished = run_process(command)
    if finished.code not in accepted:
        raise RuntimeError(f"exit code {finished.code} of {' '.join(command)}:\n{finished.output[-2000:]}")
    return finished


def measure_floor() -> Cost:
    """The cost of a process that only imports the libraries."""
    return run_checked([sys.executable, "-c", f"import {', '.join(LIBRARIES)}"]).cost


def measure_case(case: Case, times: int) -> Row:
    """One row of the table."""
    settings = [part for setting in case.settings for part in ("--set", setting)]
    question = [sys.executable, "-m", "axmem_trace", case.config, "--offline", *settings]
    floors, firsts = [], []
    for _ in range(times):  # alternating, so that other work on the machine slows both
        floors.append(measure_floor())
        firsts.append(run_checked(question, ANSWERED).cost)
    answer = _last_json(run_checked([sys.executable, __file__, "--answer-again", case.config, *case.settings]).output)
    traced = _last_json(run_checked([sys.executable, __file__, "--trace", case.config, *case.settings]).output)
    row = Row(
        case,
        least(floors),
        least(firsts),
        traced["trace_cpu_seconds"],
        answer["other_tokens_cpu_seconds"],
        answer["allocated_bytes"],
    )
    return _with_tracker(row) if case.tracked else row


def _with_tracker(row: Row) -> Row:
    """Adds MemTracker's figures. It runs once, because it may take minutes and small differences do not matter."""
    limited = ["bash", "-c", f'ulimit -t {TRACKER_LIMIT}; exec "$0" "$@"', sys.executable]
    finished = run_process([*limited, str(SCRIPTS / "mem_tracker.py"), row.case.config, *row.case.settings])
    if finished.code < 0:
        return replace(row, stopped=f"not done after {TRACKER_LIMIT} CPU seconds")
    if finished.code:
        return replace(row, stopped=finished.output.rstrip().splitlines()[-1])
    return replace(row, tracker=finished.cost, tracker_bytes=_last_json(finished.output)["peak_bytes"])


def _last_json(output: str) -> dict[str, Any]:
    """The JSON in the last line of a child process's output."""
    found: dict[str, Any] = json.loads(output.rstrip().splitlines()[-1])
    return found


def answer_again(config: str, settings: Sequence[str]) -> Mapping[str, float | int]:
    """Estimates with other row lengths, in a process that has made one estimate: the smallest of three, with lengths
    that are new to the process."""
    import time

    import axmem_trace

    report = axmem_trace.estimate(ROOT / config, overrides=settings, hub="never")
    length = _sequence_len(ROOT / config, settings)
    seconds = []
    for other in (length // 2, length * 3 // 4, length // 4):
        before = time.process_time()
        axmem_trace.estimate(ROOT / config, overrides=[*settings, f"sequence_len={other}"], hub="never")
        seconds.append(time.process_time() - before)
    return {"other_tokens_cpu_seconds": min(seconds), "allocated_bytes": report.peak.allocated_bytes}


def trace_alone(config: str, settings: Sequence[str]) -> Mapping[str, float]:
    """Builds and traces as in a new process, after the imports: the smallest of three."""
    import time

    from axmem_trace.config import read_recipe
    from axmem_trace.imports import collector_paused, import_libraries, spare_what_is_there
    from axmem_trace.quiet import quiet_libraries

    recipe = read_recipe(ROOT / config, overrides=settings, hub="never")
    seconds = []
    with quiet_libraries(), collector_paused():
        import_libraries()
        from axmem_trace.training import checked_folds, kept_runs
        from axmem_trace.training.layer_folding import trace_run

        for _ in range(3):  # the first time imports the model's own files
            checked_folds.forget_all()
            kept_runs.forget_kept()
            spare_what_is_there()
            before = time.process_time()
            trace_run(recipe)
            seconds.append(time.process_time() - before)
    return {"trace_cpu_seconds": min(seconds)}


def _sequence_len(config: Path, settings: Sequence[str]) -> int:
    import yaml

    found = int(yaml.safe_load(config.read_text(encoding="utf-8"))["sequence_len"])
    return next((int(each.partition("=")[2]) for each in settings if each.startswith("sequence_len=")), found)


def write_table(rows: Sequence[Row], times: int) -> str:
    """The block of docs/speed.md."""
    floor = least([row.floor for row in rows])
    lines = [
        f"The floor is a process that only imports {', '.join(LIBRARIES[:-1])} and {LIBRARIES[-1]}, in turn with each run: "
        f"{floor.cpu_seconds:.2f} CPU",
        f"seconds or more, {_mib(floor.peak_rss_bytes)}. Least of {times}; Python {platform.python_version()},",
        f"{', '.join(f'{name} {version(name)}' for name in LIBRARIES)}.",
        "",
        "| run | layers | floor, CPU s | first answer, CPU s | / floor | trace, CPU s | other tokens, CPU s | peak RSS | "
        "allocated | MemTracker: allocated | CPU s | peak RSS |",
        f"| --- |{' ---: |' * 11}",
    ]
    lines += [_line(row) for row in rows]
    stopped = [f"- MemTracker on {row.case.name}: {row.stopped}" for row in rows if row.stopped]
    return "\n".join([*lines, *([""] if stopped else []), *stopped]) + "\n"


def write_short_table(block: str) -> str:
    """The block of README.md: this package's columns of the block in docs/speed.md."""
    rows = [line.split("|")[1 : README_COLUMNS + 1] for line in block.splitlines() if line.startswith("|")]
    return "\n".join(f"|{'|'.join(cells)}|" for cells in rows) + "\n"


def write_blocks(table: str) -> None:
    """Writes the blocks of both documents."""
    _write_block(DOCUMENT, BLOCK, table)
    _write_block(README, README_BLOCK, write_short_table(table))


def _write_block(path: Path, own: str, body: str) -> None:
    text = path.read_text(encoding="utf-8")
    fresh = marked_blocks.fill(text, lambda name, before: f"\n{body}\n" if name == own else before)
    path.write_text(fresh, encoding="utf-8")


def _line(row: Row) -> str:
    cells = [
        row.case.name,
        str(row.case.layers),
        f"{row.floor.cpu_seconds:.2f}",
        f"{row.first.cpu_seconds:.2f}",
        f"{row.first.cpu_seconds / row.floor.cpu_seconds:.2f}",
        f"{row.trace_cpu_seconds:.2f}",
        f"{row.other_tokens_cpu_seconds:.2f}",
        _mib(row.first.peak_rss_bytes),
        _gib(row.allocated_bytes),
    ]
    if row.tracker is not None:
        cells += [_gib(row.tracker_bytes), f"{row.tracker.cpu_seconds:.1f}", _mib(row.tracker.peak_rss_bytes)]
    else:
        cells += ["stops" if row.stopped else "", "", ""]
    return f"| {' | '.join(cells)} |"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"


def main() -> int:
    """Measures, prints the table, and with `--write` puts it into docs/speed.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of each process (3)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/speed.md and README.md")
    parser.add_argument("--answer-again", nargs="+", metavar=("CONFIG", "KEY=VALUE"), help=argparse.SUPPRESS)
    parser.add_argument("--trace", nargs="+", metavar=("CONFIG", "KEY=VALUE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace:
        print(json.dumps(trace_alone(options.trace[0], options.trace[1:])))
        return 0
    if options.answer_again:
        print(json.dumps(answer_again(options.answer_again[0], options.answer_again[1:])))
        return 0
    cases = [case for case in CASES if options.only.lower() in case.name.lower()]
    if not cases:
        parser.error(f"no case is called {options.only!r}: {', '.join(case.name for case in CASES)}")
    table = write_table([measure_case(case, options.repeat) for case in cases], options.repeat)
    print(table)
    if options.write:
        write_blocks(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
