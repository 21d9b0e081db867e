#!/usr/bin/env python3
"""Writes the parts of the README and of docs/ that are output of this package, between
`<!-- begin: … -->` and `<!-- end -->`.

Run it after a change of any figure. With `--check` it only says whether the parts are up to date.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axmem_trace.report.accuracy import MeasuredError

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

import benchmark  # noqa: E402
import marked_blocks  # noqa: E402

FILES = tuple(
    ROOT / name for name in ("README.md", "docs/assumptions.md", "docs/accuracy.md", "configs/code-llama/README.md")
)
"""The files with generated parts."""
WIDTH = 80
"""The width of the shown report in columns."""
ENVIRONMENT = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
ANCESTOR = {"base": "31.2 GiB", "adapter": "207.8 MiB", "gradients": "207.8 MiB", "optimizer": "415.5 MiB"}


def run_command(command: str) -> str:
    """The output of the command. Exit codes other than 0 end the script."""
    arguments = [sys.executable, "-m", *shlex.split(command)]
    found = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    lines = "\n".join(line.rstrip() for line in found.stdout.rstrip().splitlines())
    return f"```console\n$ {command}\n{lines}\n```\n"


def write_code_llama() -> str:
    """The table of `configs/code-llama/34b/lora.yml`: the figures of an older tool, ours, and why they differ."""
    import axmem_trace
    from axmem_trace.units import format_bytes

    report = axmem_trace.estimate(ROOT / "configs/code-llama/34b/lora.yml", hub="never")
    rows = {(row.kind, row.dtype, row.trainable): row for row in report.dtypes}
    packed, plain = rows["parameter", "int8", False], rows["parameter", "bfloat16", False]
    trained = report.model.trainable_parameters
    scales = report.resident.weights - packed.bytes - plain.bytes
    lines = [
        (
            "base model",
            ANCESTOR["base"],
            report.resident.weights,
            f"the {packed.elements:,} weights of the linears are one byte each, but embedding, head and norms "
            f"({plain.elements:,}) stay bf16: {format_bytes(plain.bytes)} instead of half of it; and each row of an int8 "
            f"weight has an fp32 scale ({format_bytes(scales)} with the rotary tables)",
        ),
        (
            "adapter",
            ANCESTOR["adapter"],
            report.resident.adapters,
            f"peft keeps the {trained:,} LoRA weights in fp32: four bytes each, on any base",
        ),
        (
            "gradients",
            ANCESTOR["gradients"],
            report.resident.gradients,
            "a gradient has its parameter's dtype: four bytes",
        ),
        (
            "optimizer",
            ANCESTOR["optimizer"],
            report.resident.optimizer,
            "right in kind: two states of one byte; and a scale of four bytes for every 256 of each, with fp32 states for "
            "tensors of less than 4,096 elements",
        ),
        (
            "activations at the peak",
            "—",
            report.buckets.activations,
            f"the input of each layer, {report.batch.rows} x {report.batch.row_tokens:,} tokens, and what the layer at work "
            "keeps",
        ),
        (
            "workspace at the peak",
            "—",
            report.buckets.workspace,
            "what the layer at work computes again, dequantised weights, logits and their gradient",
        ),
        (
            "allocated at the peak",
            "—",
            report.peak.allocated_bytes,
            f"in {report.peak.phase} of step {report.peak.step}",
        ),
        ("reserved", "—", report.peak.reserved_bytes, "with what the allocator caches"),
    ]
    table = ["| line | ancestor | truth | why |", "| --- | ---: | ---: | --- |"]
    table += [f"| {name} | {old} | {format_bytes(nbytes)} | {why} |" for name, old, nbytes, why in lines]
    return "\n".join(table) + "\n"


def write_assumptions() -> str:
    """The keys of `--assume`."""
    from axmem_trace.config.assumption_table import ASSUMPTIONS

    table = ["| key | values | meaning |", "| --- | --- | --- |"]
    for name, assumption in ASSUMPTIONS.items():
        values = assumption.type.replace("|", " \\| ").replace("'", "`")
        table.append(f"| `{name}` | {values} | {assumption.meaning} |")
    return "\n".join(table) + "\n"


def write_measured() -> str:
    """The summary of `tests/measured/README.md`."""
    return marked_blocks.read((ROOT / "tests/measured/README.md").read_text(encoding="utf-8"), "summary")


def write_trust() -> str:
    """Our error by kind of run, from the package's table, with one row for each kind; and the errors of all runs
    together, in words."""
    from axmem_trace.report.accuracy import ALLOCATED, read_errors

    rows: dict[str, list[MeasuredError | None]] = {}
    for error in read_errors():
        cells = rows.setdefault(error.kind.describe(), [None, None])
        place = 0 if error.metric == ALLOCATED else 1
        kept = cells[place]
        if kept is None or error.runs > kept.runs:
            cells[place] = error
    table = ["| kind of run | runs | allocated within | too low | on the card within | too low |"]
    table += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for kind, (allocated, on_card) in sorted(rows.items()):
        assert allocated is not None
        table.append(f"| {kind} | {allocated.runs} | {_trust(allocated)} | {_trust(on_card)} |")
    return "\n".join(table) + f"\n\n{_write_together()}\n"


TOGETHER = {
    "fms-acceleration and Answer.AI, one GPU: `max_allocated`": "All on one GPU together, allocated",
    "fms-acceleration: `nvidia-smi`, default allocator": "`nvidia-smi`",
    "axolotl's examples: published figures, mostly reserved": "axolotl's own published figures, lengths unknown",
}


def _write_together() -> str:
    """Rows of the summary, one line each."""
    lines = []
    for line in write_measured().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if cells[0] in TOGETHER:
            name, (figures, _, half, most, low, worst) = TOGETHER[cells[0]], cells[1:]
            near = f"half within {half}, nine of ten within {most}"
            lines.append(f"- {name}: {near}, {low} too low, worst {worst} ({figures} runs)")
    assert len(lines) == len(TOGETHER)
    return "\n".join(lines)


def _trust(error: MeasuredError | None) -> str:
    """Two cells: the error, and the share of the runs whose prediction was too low."""
    if error is None:
        return "not measured | "
    return f"{error.within:.2%} | {error.too_low_share:.0%}".replace("%", " %")


def write_kinds() -> str:
    """The whole table of the package."""
    from axmem_trace.report.accuracy import read_errors

    table = ["| kind of run | figure | runs | half within | nine of ten within | lowest | highest | too low |"]
    table += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for error in sorted(read_errors(), key=lambda error: (error.kind.describe(), error.metric)):
        figures = (
            f"{error.half_within:.2%}",
            f"{error.nine_of_ten_within:.2%}",
            f"{error.worst_low:+.2%}",
            f"{error.worst_high:+.2%}",
            f"{error.too_low_share:.0%}",
        )
        cells = (
            error.kind.describe(),
            f"`{error.metric}`",
            str(error.runs),
            *(each.replace("%", " %") for each in figures),
        )
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table) + "\n"


def write_speed() -> str:
    """This package's columns of the table in docs/speed.md, which `scripts/benchmark.py` writes."""
    return benchmark.write_short_table(
        marked_blocks.read(benchmark.DOCUMENT.read_text(encoding="utf-8"), benchmark.BLOCK)
    )


WRITERS: dict[str, Callable[[], str]] = {
    "code-llama": write_code_llama,
    "assumptions": write_assumptions,
    "measured": write_measured,
    "trust": write_trust,
    "kinds": write_kinds,
    benchmark.README_BLOCK: write_speed,
}


def rewrite(text: str, only: str = "") -> str:
    """The text with every generated part made again; with `only`, just the part of this name."""

    def write(name: str, body: str) -> str:
        if only and name != only:
            return body
        return f"\n{WRITERS[name]() if name in WRITERS else run_command(name)}\n"

    return marked_blocks.fill(text, write)


def main() -> int:
    """Writes the parts, or with `--check` compares them; returns 1 if a part is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the text is stale")
    options = parser.parse_args()
    stale = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        fresh = rewrite(text)
        if text != fresh:
            stale.append(path.name)
            if not options.check:
                path.write_text(fresh, encoding="utf-8")
    if options.check:
        print(f"stale: {', '.join(stale)}; run scripts/write_readme.py" if stale else "all parts are up to date")
        return int(bool(stale))
    return 0


if __name__ == "__main__":
    sys.exit(main())
