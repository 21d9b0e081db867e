"""Runs configurations on a real CUDA GPU, with random weights, and writes the measured and the predicted figures.

    python scripts/measure_on_gpu.py CONFIG.yml... [--set key=value]... [--assume key=value]... [-o FILE] [--history]
    python scripts/measure_on_gpu.py --recipes [NAME,...] [-o DIRECTORY] [--history]
    torchrun --nproc-per-node N scripts/measure_on_gpu.py CONFIG.yml [as above]

Needs no weights and no Hub: torch, transformers, peft, accelerate, bitsandbytes and PyYAML are enough. Settings that
the estimate only imitates (fused kernels, optimizers of other packages) are refused. Each configuration runs in a
separate process, with the same allocator settings as in the estimate; a failed one does not stop the others.
`--recipes` runs the recipes of `gpu_recipes.py` and writes a file for each to `tests/measured/`. From then on, the
tests there compare the estimate with these files, without a GPU. With `torchrun`, each GPU is a rank of DDP or FSDP, as
the configuration says. Rank 0 writes the JSON; `ranks` has the figures of every rank.

exit codes: 0 measured; 1 a run failed; 2 there is no GPU, or a configuration can't be run
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parent
for place in (SCRIPTS, SCRIPTS.parent):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from gpu_figures import compare, find_peak_by_code, summarise_phases, summarise_report  # noqa: E402
from gpu_recipes import RECIPES, write_recipe  # noqa: E402

from axmem_trace.cli.argument_types import key_value  # noqa: E402
from axmem_trace.errors import ConfigError  # noqa: E402

SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "flash_attn")
MEASURED = SCRIPTS.parent / "tests" / "measured"
CHANGES_MEMORY = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
)
"""Environment variables that a run must not inherit: the estimate assumes that none of them is set."""


class Job(NamedTuple):
    """One configuration to run, and the file for its JSON; None: standard output."""

    name: str
    config: Path
    assumptions: Sequence[str]
    output: Path | None
    ranks: int = 0
    axolotl: str = ""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("configs", metavar="CONFIG.yml", nargs="*")
    add(
        "--recipes",
        metavar="NAME,...",
        nargs="?",
        const="all",
        help=f"run the ready recipes, all or some of: {', '.join(RECIPES)}",
    )
    add("--set", metavar="key=value", action="append", default=[], type=key_value, dest="overrides")
    add("--assume", metavar="key=value", action="append", default=[], type=key_value, dest="assumptions")
    add("--axolotl", metavar="VERSION", default="", help="the release whose rules apply")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write the JSON there instead of to standard output; a directory where several are run",
    )
    add("--history", action="store_true", help="record the allocator's history: where the bytes of the peak came from")
    add("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    return parser


def find_refusal() -> str:
    """The reason why nothing can be measured on this machine; empty if it is possible."""
    import torch

    if not torch.backends.cuda.is_built():
        return "this PyTorch is built without CUDA, so nothing can be measured; an estimate needs no GPU"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU, so nothing can be measured; an estimate needs none"
    return ""


def list_jobs(parsed: argparse.Namespace, place: Path) -> Iterator[Job]:
    """The requested configurations. Recipes are written to `place` as configurations.

    Raises:
        ConfigError: nothing is requested, or there is no such recipe.
    """
    names = [] if parsed.recipes is None else list(RECIPES) if parsed.recipes == "all" else parsed.recipes.split(",")
    unknown = [name for name in names if name not in RECIPES]
    if unknown or not (names or parsed.configs):
        raise ConfigError(
            problem=f"no ready recipe {unknown[0]!r}" if unknown else "nothing to run was named",
            accepted=f"a configuration, or --recipes with any of {', '.join(RECIPES)}",
        )
    is_directory = bool(names) or len(parsed.configs) > 1
    directory = (parsed.output or (MEASURED if names else None)) if is_directory else None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        recipe = RECIPES[name]
        yield Job(
            name,
            write_recipe(name, place),
            recipe.assumptions,
            directory and directory / f"{name}.json",
            recipe.ranks,
            recipe.axolotl,
        )
    for config in map(Path, parsed.configs):
        output = directory / f"{config.stem}.json" if directory else parsed.output
        yield Job(config.name, config, (), output, axolotl=parsed.axolotl)


def run_apart(job: Job, parsed: argparse.Namespace) -> int:
    """Runs the job in a separate process, so that the card is empty and the allocator has its own settings."""
    command = [sys.executable, str(Path(__file__).resolve()), str(job.config), "--in-this-process"]
    for option, values in (("--set", parsed.overrides), ("--assume", [*job.assumptions, *parsed.assumptions])):
        command += [part for value in values for part in (option, value)]
    command += ["-o", str(job.output)] if job.output else []
    command += ["--history"] if parsed.history else []
    command += ["--axolotl", job.axolotl] if job.axolotl else []
    environment = {**os.environ, **({"FAKE_RANKS": str(job.ranks)} if job.ranks else {})}
    return subprocess.run(command, check=False, env=environment).returncode


def measure(
    config: str, overrides: Sequence[str], assumptions: Sequence[str], *, history: bool, axolotl: str = ""
) -> dict[str, Any]:
    """Predicts, then runs; returns the content of the JSON. Call it before torch is imported.

    Raises:
        ConfigError: the configuration can't be read, estimated or run.
    """
    from axmem_trace.config import read_recipe

    num_gpus = num_ranks()
    asked: dict[str, Any] = {"overrides": overrides, "num_gpus": num_gpus, "axolotl": axolotl}
    recipe = read_recipe(config, assumptions=assumptions, **asked)
    settings = recipe.allocator.settings
    assumptions = [*assumptions, f"allocator={settings or 'default'}"]  # independent of this machine's environment
    prepare_environment(settings, has_zeros=has_zeros(recipe.batch))
    import torch
    from gpu_run import check_kernels, check_runnable, run_recipe

    from axmem_trace import estimate

    card = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
    gpu = name_of_card(card.name, card.total_memory, (card.major, card.minor))
    asked |= {"assumptions": assumptions, "gpu": gpu}
    recipe = read_recipe(config, **asked)
    check_runnable(recipe)
    report = estimate(config, **asked)
    check_kernels(report.notes)
    predicted = summarise_report(report)
    by_rank, snapshot = run_recipe(recipe, history=history)
    after_load, phases = by_rank[0]
    measured = summarise_phases(after_load, phases)
    return {
        "schema_version": SCHEMA_VERSION,
        "config": Path(config).name,
        "content": Path(config).read_text(encoding="utf-8"),
        "overrides": list(overrides),
        "assumptions": assumptions,
        "num_gpus": num_gpus,
        "gpu": {
            "name": card.name,
            "asked_for": gpu,
            "memory_bytes": card.total_memory,
            "compute_capability": [card.major, card.minor],
        },
        "axolotl": report.axolotl.version,
        "versions": find_versions(),
        "measured": {**measured, "load": after_load, "phases": phases},
        "predicted": predicted,
        **({"ranks": [summarise_phases(*each) for each in by_rank]} if len(by_rank) > 1 else {}),
        "comparison": compare(predicted, measured),
        "peak_by_code": find_peak_by_code(snapshot) if snapshot else [],
    }


def world_size() -> int:
    """The number of processes that torchrun has started; 1 without it. torch must not be imported yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_ranks() -> int:
    """The number of ranks of the run. With `FAKE_RANKS`, this process is rank 0 of PyTorch's `fake` process group."""
    return int(os.environ.get("FAKE_RANKS", "0")) or world_size()


def has_zeros(batch: Any) -> bool:
    """Whether a mask of the batch contains a zero, or a row contains several samples (`recipe.batch`)."""
    return bool(batch.packed or (batch.padded and batch.attention_mask))


def prepare_environment(settings: str, *, has_zeros: bool) -> None:
    """Sets environment variables that PyTorch reads once, when its CUDA library is loaded.

    Args:
        has_zeros: the result of the function of that name. A model reads from the card whether a mask is all ones, or
            whether a row is one sample (transformers `masking_utils.py`, `_ignore_causal_mask_sdpa`,
            `find_packed_sequence_indices`). Without a GPU (`cuda_without_gpu.py`), it gets this value. A wrong value
            adds a mask, and repeats keys and values for each head, in each layer.
    """
    for variable in CHANGES_MEMORY:
        os.environ.pop(variable, None)
    os.environ["PYTORCH_ALLOC_CONF"] = settings
    os.environ.setdefault("FAKE_CUDA_BYTE", "0" if has_zeros else "1")


def name_of_card(name: str, memory_bytes: int, capability: tuple[int, int]) -> str:
    """The card's name for the estimate. If the name is unknown, it is that of the nearest card of the same generation,
    which has the same kernels. If there is no such card, it is the card's size."""
    from axmem_trace.catalogue.gpus import CARDS, find_gpu

    try:
        find_gpu(name)
        return name
    except ConfigError:
        gib = memory_bytes / (1 << 30)
        alike = [card for card in CARDS if card.capability == capability]
        return min(alike, key=lambda card: abs(card.gib - gib)).name if alike else f"{gib:.2f}GiB"


def find_versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def main_here(parsed: argparse.Namespace) -> int:
    """Measures one configuration in this process."""
    (config,) = parsed.configs
    try:
        found = measure(config, parsed.overrides, parsed.assumptions, history=parsed.history, axolotl=parsed.axolotl)
    except ConfigError as error:
        print(f"measure_on_gpu: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # one of several runs: the others continue; the traceback shows where it failed
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"measure_on_gpu: {Path(config).name} does not fit on this card: {error}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") != "0":
        return 0
    text = json.dumps(found, indent=1)
    if parsed.output:
        parsed.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for quantity, deviation in found["comparison"].items():
        print(f"{quantity:14} {deviation:+.2%}", file=sys.stderr)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    if parsed.in_this_process:
        return main_here(parsed)
    refusal = find_refusal()
    if refusal:
        print(f"measure_on_gpu: {refusal}", file=sys.stderr)
        return 2
    if world_size() > 1:
        if parsed.recipes is not None or len(parsed.configs) != 1:
            print("measure_on_gpu: torchrun can measure one configuration at a time", file=sys.stderr)
            return 2
        return main_here(parsed)
    codes = []
    with tempfile.TemporaryDirectory() as place:
        try:
            jobs = list(list_jobs(parsed, Path(place)))
        except ConfigError as error:
            print(f"measure_on_gpu: {error}", file=sys.stderr)
            return 2
        for job in jobs:
            if len(jobs) > 1:
                print(f"{job.name}:", file=sys.stderr, flush=True)
            codes.append(run_apart(job, parsed))
    failed = [job.name for job, code in zip(jobs, codes, strict=True) if code]
    if len(jobs) > 1:
        print(
            f"{len(jobs) - len(failed)} of {len(jobs)} measured" + (f"; not: {', '.join(failed)}" if failed else ""),
            file=sys.stderr,
        )
    return codes[0] if len(jobs) == 1 else min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
