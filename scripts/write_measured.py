#!/usr/bin/env python3
"""Writes the tables of tests/measured/README.md, between `<!-- begin: … -->` and `<!-- end -->`.

    python scripts/compare_published.py DIRECTORY --format json > FILE
    python scripts/write_measured.py FILE && python scripts/write_readme.py

Deviations over 5 % without an explanation below are marked as unexplained.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "tests/measured/README.md"
SCRIPTS = ROOT / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

import marked_blocks  # noqa: E402
from published_figures import GIB, Row, differences, fit_lines, summarise  # noqa: E402

EXPLAINED_FROM = 0.05
CARD_BYTES = 80 * GIB
QUANTITIES = {
    "allocated": "max_allocated",
    "passes": "max_allocated",
    "end": "allocated at the end",
    "reserved": "max_reserved",
    "load": "allocated after load",
    "after_forward": "allocated after forward",
    "after_backward": "allocated after backward",
    "device": "nvidia-smi",
}

EXPLANATIONS = (
    (r"probe.*", "load", "24 rotary caches of 1 MiB, and the cuBLAS workspaces of cells before: see above"),
    (r"peft-mmqa-rank32-torch.*", "", "no test: the length of the longest batch is taken from this run"),
    (r"fms-base-L(12|16)|fms-liger-L(11|99)", "device", "the card was full: see above"),
    (r"fms-base-.*", "device", "**unexplained**: about 1 GiB outside PyTorch in each of these runs, see above"),
    (r"msswift24.*", "", "**unexplained**; lengths and checkpointing are loose: measured memory grows three times as fast "
     "with the length as logits and checkpoints do"),
    (r"axolotl-lfm2.*", "", "8.3 B parameters at 16 bit alone are 15.5 GiB: measured when experts were linear layers and "
     "8-bit; transformers 5 fuses them and bitsandbytes leaves them at 16 bit"),
    (r"axolotl-qwen3\.5-27b.*", "", "**unexplained**; the source's own note finds it far above its peers"),
    (r"axolotl-openllama3b.*", "", "**unexplained**; of 2023, probably with the CUDA context"),
    (r"axolotl-.*", "", "**unexplained**; evaluation, sample lengths and the moment of reading are unknown"),
)  # fmt: skip
"""(run, quantity, explanation): the first that matches is used."""
ALWAYS_SHOWN = 6
"""This many rows are always shown, also if the deviation is small."""

GROUPS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("fms-acceleration and Answer.AI, one GPU: `max_allocated`",
     lambda row: row.source in ("fms", "answerai") and row.quantity in ("allocated", "passes")),
    ("fms-acceleration: allocated at the end", lambda row: row.source == "fms" and row.quantity == "end"),
    ("fms-acceleration: `nvidia-smi`, default allocator", lambda row: row.source == "fms" and row.quantity == "device"),
    ("Answer.AI notebook: allocated after load, forward, backward", lambda row: row.source == "probes"),
    ("the same with checkpointing", lambda row: row.source == "probes" and "no GC" not in row.id),
    ("PEFT method comparison: `max_reserved`", lambda row: row.source == "peft" and "rank32-torch" not in row.id),
    ("ms-swift: `max_reserved`, lengths loose", lambda row: row.source == "msswift24"),
    ("axolotl's examples: published figures, mostly reserved", lambda row: row.source == "axolotl"),
)  # fmt: skip


def read_rows(path: Path) -> list[Row]:
    """Every row of a comparison."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return [Row(**{name: value for name, value in run.items() if name != "error"}) for run in runs]


def explain(row: Row) -> str:
    """The explanation of a row's deviation; empty if the deviation is small."""
    for rank, (run, quantity, why) in enumerate(EXPLANATIONS):
        if re.fullmatch(run, row.id) and quantity in ("", row.quantity):
            return why if rank < ALWAYS_SHOWN or abs(row.error) > EXPLAINED_FROM else ""
    return "**unexplained**" if abs(row.error) > EXPLAINED_FROM else ""


def table(titles: Sequence[str], aligned: str, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `aligned` has a letter for each column."""
    rule = {"l": "---", "r": "---:"}
    lines = [titles, [rule[each] for each in aligned], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_runs(rows: Iterable[Row]) -> str:
    """Predicted and measured figures."""
    titles = ("run", "quality", "figure", "predicted (GiB)", "measured (GiB)", "error", "explanation")
    return table(
        titles,
        "lllrrrl",
        (
            (
                row.id,
                row.quality,
                QUANTITIES[row.quantity],
                f"{row.predicted / GIB:.3f}",
                f"{row.measured / GIB:.3f}",
                f"{row.error:+.2%}".replace("%", " %"),
                explain(row),
            )
            for row in rows
            if row.predicted
        ),
    )


def write_summary(rows: Sequence[Row]) -> str:
    """Errors by group, and the runs that did not fit."""
    titles = ("runs", "figures", "median", "median, unsigned", "90 % within", "too low", "worst")
    lines = []
    for name, belongs in GROUPS:
        errors = [row.error for row in rows if row.predicted and belongs(row) and "-oom-" not in row.id]
        if not errors:
            continue
        found = summarise(errors)
        cells = (
            f"{found.median:+.2%}",
            f"{found.median_absolute:.2%}",
            f"{found.percentile_90:.2%}",
            f"{found.under_rate:.0%}",
            f"{found.worst:+.1%}",
        )
        lines.append((name, str(found.count), *(cell.replace("%", " %") for cell in cells)))
    full = [row for row in rows if "-oom-" in row.id and row.predicted]
    beyond = sum(row.predicted > CARD_BYTES for row in full)
    did_not_fit = f"{beyond} of {len(full)} runs that did not fit on 80 GB are predicted not to."
    return f"{table(titles, 'lrrrrrr', lines)}\n{did_not_fit}\n"


def write_lines(rows: Sequence[Row]) -> str:
    """Intercept and slope of runs that differ only in the batch."""
    titles = ("line", "intercept, predicted", "measured", "slope per row, predicted", "measured")
    return table(
        titles,
        "lrrrr",
        (
            (
                found["line"],
                *(
                    f"{found[side][key]:.{digits}f}"
                    for key, digits in (("intercept", 3), ("slope", 4))
                    for side in ("predicted", "measured")
                ),
            )
            for found in fit_lines(row for row in rows if row.source == "fms" and "-oom-" not in row.id)
        ),
    )


def write_differences(rows: Sequence[Row]) -> str:
    titles = ("difference between two LoRA shapes", "predicted (GiB)", "measured (GiB)", "error")
    return table(
        titles,
        "lrrr",
        (
            (
                found["runs"].replace("peft-mmqa-", ""),
                f"{found['predicted']:.3f}",
                f"{found['measured']:.3f}",
                f"{found['predicted'] / found['measured'] - 1:+.1%}".replace("%", " %"),
            )
            for found in differences(rows)
        ),
    )


def write_many(rows: Iterable[Row]) -> str:
    """Runs on several GPUs. The errors are not explained one by one."""
    titles = (
        "run",
        "model, kernels, method, transformers x GPUs",
        "figure",
        "predicted (GiB)",
        "measured (GiB)",
        "error",
    )
    return table(
        titles,
        "lllrrr",
        (
            (
                row.id,
                row.line,
                QUANTITIES[row.quantity],
                f"{row.predicted / GIB:.3f}",
                f"{row.measured / GIB:.3f}",
                f"{row.error:+.2%}".replace("%", " %"),
            )
            for row in rows
            if row.predicted
        ),
    )


def write_did_not_fit(rows: Iterable[Row]) -> str:
    return table(
        ("run", "predicted (GiB)", "verdict"),
        "lrl",
        (
            (
                row.id.removeprefix("fms-oom-"),
                f"{row.predicted / GIB:.1f}",
                "does not fit" if row.predicted > CARD_BYTES else "**would fit**",
            )
            for row in rows
            if "-oom-" in row.id and row.predicted
        ),
    )


def write_missing(rows: Iterable[Row]) -> str:
    """The reasons, the most frequent first, with the first runs of each."""
    by_reason: dict[str, dict[str, None]] = {}
    for row in rows:
        if not row.predicted:
            reason = re.sub(r"^\d+ GPUs", "two to eight GPUs", row.reason)
            by_reason.setdefault(reason, {})[row.id] = None
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return table(
        ("reason", "runs"),
        "ll",
        (
            (reason.replace("|", "\\|"), f"{len(ids)}: {', '.join(list(ids)[:4])}{', …' if len(ids) > 4 else ''}")
            for reason, ids in ordered
        ),
    )


def make_blocks(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Name and content of each block of the README."""
    alone = [row for row in rows if row.num_gpus <= 1]
    runs = [row for row in alone if "-oom-" not in row.id]
    yield "summary", write_summary(alone)
    for name, sources in (
        ("fms", ("fms",)),
        ("notebook", ("answerai", "probes")),
        ("peft", ("peft",)),
        ("msswift", ("msswift24",)),
        ("axolotl", ("axolotl",)),
    ):
        yield name, write_runs(row for row in runs if row.source in sources)
    yield "many", write_many(row for row in rows if row.num_gpus > 1 and "-oom-" not in row.id)
    yield "lines", write_lines(alone)
    yield "differences", write_differences(alone)
    yield "did not fit", write_did_not_fit(alone)
    yield "missing", write_missing(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    blocks: dict[str, Any] = dict(make_blocks(read_rows(parser.parse_args(arguments).comparison)))
    text = README.read_text(encoding="utf-8")
    README.write_text(marked_blocks.fill(text, lambda name, body: blocks[name]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
