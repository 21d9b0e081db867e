"""Batches of different lengths: compares the allocator's simulation with PyTorch's own allocator, move by move, without
a GPU.

    python scripts/real_lengths.py LIB INCLUDE CUDA_INCLUDE [--record FILE] [--match REGEX] [--layers N]

The first three arguments are those of `real_allocator.py`. Each recipe is traced, and its sizes are scaled to rows of
other lengths. Every sequence of steps that an estimate simulates is also run with PyTorch's
`c10::cuda::CUDACachingAllocator`: each address and each figure must be equal. `--layers` shortens the models.
`--record` writes recordings and results, compressed with gzip, for the tests.

exit codes: 0 all equal; 1 a difference; 2 it can't be built
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
for place in (SCRIPTS, SCRIPTS.parent):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from real_allocator import Move, build, digest, find_difference, run_real, simulate  # noqa: E402

from axmem_trace.allocator import parse_alloc_conf, replay  # noqa: E402
from axmem_trace.ledger import NEVER, Ledger  # noqa: E402
from axmem_trace.lengths.laws import SizeLaws  # noqa: E402
from axmem_trace.recipe.recipe import Recipe  # noqa: E402
from axmem_trace.units import GIB  # noqa: E402

SETTINGS = ("expandable_segments:True", "expandable_segments:False")
CAPACITY_BYTES = 1 << 40
DATASET = [{"path": "any", "type": "alpaca"}]
_BASE = {
    "datasets": DATASET,
    "bf16": True,
    "gradient_checkpointing": True,
    "val_set_size": 0.02,
    "evals_per_epoch": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "optimizer": "adamw_torch_fused",
    "num_epochs": 1,
}
_LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
_LIGER = {
    "plugins": ["axolotl.integrations.liger.LigerPlugin"],
    "liger_fused_linear_cross_entropy": True,
    "liger_rms_norm": True,
    "liger_glu_activation": True,
}
_LLAMA, _QWEN = {"base_model": "meta-llama/Llama-3.1-8B"}, {"base_model": "Qwen/Qwen3-8B"}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {**_BASE, **_LLAMA, **_LORA, "micro_batch_size": 4, "sequence_len": 2048,
             "attn_implementation": "flash_attention_2"},
    "qlora": {**_BASE, **_QWEN, **_LORA, "adapter": "qlora", "load_in_4bit": True, "micro_batch_size": 2,
              "sequence_len": 4096, "attn_implementation": "sdpa", "optimizer": "paged_adamw_8bit"},
    "eager": {**_BASE, **_LLAMA, **_LORA, "micro_batch_size": 2, "sequence_len": 1024, "attn_implementation": "eager",
              "pad_to_multiple_of": 8},
    "full": {**_BASE, **_QWEN, "micro_batch_size": 1, "sequence_len": 8192, "optimizer": "adamw_8bit",
             "attn_implementation": "flash_attention_2", "gradient_accumulation_steps": 1},
    "liger": {**_BASE, **_LLAMA, **_LORA, **_LIGER, "micro_batch_size": 2, "sequence_len": 4096,
              "attn_implementation": "flash_attention_2"},
    "kept": {**_BASE, **_LLAMA, **_LORA, "micro_batch_size": 1, "sequence_len": 2048, "gradient_checkpointing": False,
             "attn_implementation": "flash_attention_2", "gc_steps": 5},
    "dpo": {**_BASE, **_LLAMA, **_LORA, "rl": "dpo", "micro_batch_size": 1, "sequence_len": 2048,
            "attn_implementation": "flash_attention_2", "datasets": [{"path": "any", "type": "chatml.intel"}],
            "val_set_size": 0},
    "packed": {**_BASE, **_LLAMA, **_LORA, "micro_batch_size": 2, "sequence_len": 4096, "sample_packing": True,
               "pad_to_sequence_len": False, "attn_implementation": "flash_attention_2"},
}  # fmt: skip
"""Runs with batches of different lengths: kernels without padding, unfused attention, a loss whose chunks grow in
jumps, saved activations, a cache that is emptied, preference pairs, packed rows without padding."""


def trace_recipe(config: dict[str, Any], layers: int) -> tuple[Recipe, dict[int, Ledger]]:
    """A recipe, and its recordings by the length of a row."""
    from axmem_trace.config import read_recipe
    from axmem_trace.estimation import _trace
    from axmem_trace.imports import collector_paused, import_libraries
    from axmem_trace.lengths.simulate import trace_laws
    from axmem_trace.progress import Stopwatch
    from axmem_trace.quiet import quiet_libraries

    if layers:
        config = {**config, "overrides_of_model_config": {"num_hidden_layers": layers}}

    traces: dict[int, Ledger] = {}

    def trace(recipe: Recipe) -> Ledger:
        traces[recipe.batch.row_tokens] = found = _trace(recipe, Stopwatch(lambda stage: None)).ledger
        return found

    @quiet_libraries()
    def both() -> tuple[Recipe, dict[int, Ledger]]:
        recipe = read_recipe(config, gpu="H100", hub="never")
        with collector_paused():
            import_libraries()
            laws = trace_laws(recipe, trace(recipe), trace)
            return recipe, {tokens: traces[tokens] for tokens in laws.lengths}

    return both()


def write_recording(recipe: Recipe, ledgers: dict[int, Ledger]) -> dict[str, Any]:
    """All data of a recipe and its traces that the simulation reads, for the tests. Of each kind of allocation, only
    the operator is kept."""
    from dataclasses import asdict

    ledger = ledgers[max(ledgers)]
    columns = ledger.columns
    return {
        "lengths": asdict(recipe.lengths),
        "rows": recipe.batch.rows,
        "row_tokens": recipe.batch.row_tokens,
        "packed": recipe.batch.packed,
        "samples_per_row": recipe.batch.samples_per_row,
        "collect_steps": recipe.allocator.collect_steps,
        "ticks": ledger.ticks,
        "empty_cache": ledger.empty_cache_ticks,
        "marks": [[mark.tick, mark.phase, mark.step, mark.micro_batch] for mark in ledger.marks],
        "kinds": [[kind.op, kind.role, kind.device] for kind in columns.kinds],
        "kind": columns.kind.tolist(),
        "allocated": columns.allocated_tick.tolist(),
        "freed": [-1 if tick == NEVER else tick for tick in columns.freed_tick.tolist()],
        "sizes": {str(tokens): each.columns.nbytes.tolist() for tokens, each in ledgers.items()},
    }


def read_recording(recording: dict[str, Any]) -> tuple[Recipe, Ledger, SizeLaws]:
    """The inverse: a recipe with the fields that the simulation reads, the ledger of full rows, and the laws."""
    from axmem_trace.ledger import Allocation, Mark
    from axmem_trace.lengths.laws import find_laws
    from axmem_trace.recipe.recipe import Allocator, BaseModel, Batch, Model, RowLengths

    def ledger_of(sizes: list[int]) -> Ledger:
        kinds = [dict(zip(("op", "role", "device"), each, strict=True)) for each in recording["kinds"]]
        rows = zip(recording["kind"], sizes, recording["allocated"], recording["freed"], strict=True)
        allocations = [
            Allocation(nbytes=nbytes, allocated_tick=start, freed_tick=NEVER if end < 0 else end, **kinds[kind])
            for kind, nbytes, start, end in rows
        ]
        marks = tuple(
            Mark(tick=tick, phase=phase, step=step, micro_batch=micro_batch)
            for tick, phase, step, micro_batch in recording["marks"]
        )
        return Ledger(
            allocations=allocations,
            marks=marks,
            ticks=recording["ticks"],
            empty_cache_ticks=tuple(recording["empty_cache"]),
        )

    lengths = RowLengths(**{**recording["lengths"], "samples": tuple(recording["lengths"]["samples"])})
    base = BaseModel(name="", config={}, source="", directory="", model_type="", text_model_type="")
    batch = Batch(
        rows=recording["rows"],
        row_tokens=recording["row_tokens"],
        packed=recording["packed"],
        samples_per_row=recording["samples_per_row"],
    )
    recipe = Recipe(
        name="",
        model=Model(base=base),
        batch=batch,
        lengths=lengths,
        allocator=Allocator(collect_steps=recording["collect_steps"]),
    )
    ledgers = {int(tokens): ledger_of(sizes) for tokens, sizes in recording["sizes"].items()}
    return recipe, ledgers[max(ledgers)], find_laws(ledgers)


def list_moves(ledger: Ledger) -> list[Move]:
    """Allocations, frees and `empty_cache` calls, in order."""
    empty, moves = sorted(ledger.empty_cache_ticks, reverse=True), list[Move]()
    sizes = ledger.columns.nbytes.tolist()
    for tick, index, frees in ledger.moves():
        while empty and empty[-1] <= tick:
            empty.pop()
            moves.append(("e", 0, 0))
        if sizes[index]:
            moves.append(("f", index, 0) if frees else ("a", index, sizes[index]))
    return [*moves, *[("e", 0, 0)] * len(empty)]


def compare_recipe(program: Path, lib: Path, name: str, layers: int) -> Iterator[dict[str, Any]]:
    """A row for each setting: the reserved bytes with full rows and in each sequence, and the first difference from
    PyTorch."""
    from dataclasses import replace

    from axmem_trace.lengths.laws import find_laws
    from axmem_trace.lengths.simulate import make_sequences

    recipe, traces = trace_recipe(RECIPES[name], layers)
    recording = write_recording(recipe, traces) if layers else {}
    ledger, laws = traces[max(traces)], find_laws(traces)
    for text in SETTINGS:
        settings = parse_alloc_conf(text)
        settings = replace(settings, collect_steps=recipe.allocator.collect_steps)
        row: dict[str, Any] = {
            "recipe": name,
            "settings": text,
            "lengths": laws.lengths,
            "jumps": laws.num_jumps,
            "full": replay(ledger, settings).peak_reserved_bytes,
            "sequences": [],
            "digests": [],
            "difference": "",
        }
        if text == SETTINGS[0]:
            row["recording"] = recording
        for whole in make_sequences(replace(recipe, allocator=settings), ledger, laws):
            moves = list_moves(whole)
            real = run_real(program, lib, text, CAPACITY_BYTES, moves)
            ours = simulate(text, CAPACITY_BYTES, moves)
            peak = max(state.reserved for state in real or ours)
            row["difference"] = row["difference"] or find_difference(real, ours)
            if peak != (found := replay(whole, settings).peak_reserved_bytes):
                row["difference"] = row["difference"] or f"PyTorch reserves {peak}, an estimate says {found}"
            row["sequences"].append(peak)
            row["digests"].append(digest(real or []))
        yield row


def describe(row: dict[str, Any]) -> str:
    """A line: full rows, the median and the worst sequence, in GiB."""
    ordered = sorted(row["sequences"])
    figures = (row["full"], ordered[len(ordered) // 2], ordered[-1])
    more = ordered[-1] / row["full"] - 1
    return (
        f"{row['recipe']:8} {row['settings'].partition(':')[2]:6} {' '.join(f'{each / GIB:8.2f}' for each in figures)}"
        f" {more:+7.1%} {row['difference'] or 'equal'}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("lib", "include", "cuda_include"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--match", default="", metavar="REGEX", help="only these recipes")
    parser.add_argument("--layers", type=int, default=0, help="of each model; 0: all")
    parser.add_argument("--record", type=Path, metavar="FILE")
    parsed = parser.parse_args(arguments)
    lib = parsed.lib.resolve()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        try:
            program = build(Path(place), lib, parsed.include, parsed.cuda_include)
        except (OSError, subprocess.CalledProcessError) as error:
            print(getattr(error, "stderr", "") or error, file=sys.stderr)
            return 2
        print(f"{'recipe':8} {'grows':6} {'full':>8} {'median':>8} {'worst':>8} {'more':>7}")
        for name in RECIPES:
            if re.search(parsed.match, name):
                for row in compare_recipe(program, lib, name, parsed.layers):
                    print(describe(row), flush=True)
                    rows.append(row)
    if parsed.record:
        text = "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n"
        parsed.record.write_bytes(gzip.compress(text.encode(), mtime=0))
    return int(any(row["difference"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
