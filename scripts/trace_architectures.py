#!/usr/bin/env python3
"""Traces a small version of every causal language model in the installed transformers, and writes the table of that
release.

There are three checks for each type of `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`. First, a full fine-tune and a LoRA run on
meta. The LoRA run has longer rows, because code that works with short masks may need too much memory with long ones.
Second, both with gradient checkpointing: non-reentrant in the full run, reentrant in the LoRA run (without it, if the
class does not support it). Third, the CPU oracle: both runs with short rows on the real CPU must allocate the same,
byte for byte. If a check is not possible, the table has the reason. Each type is traced in a separate process with a
time limit; the table is written after each type.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "tests" / "models" / "architectures"
COLUMNS = ("full", "lora", "full_checkpointed", "lora_checkpointed", "oracle")
TOKENS = 32
MANY_TOKENS = 512
KEYS = {
    "sequence_len": TOKENS,
    "micro_batch_size": 1,
    "learning_rate": 1e-4,
    "optimizer": "adamw_torch",
    "attn_implementation": "eager",
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "datasets": [{"path": "x", "type": "alpaca"}],
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}
TARGETS = {
    "deepseek_v4": ["q_a_proj", "q_b_proj", "gate_proj", "up_proj", "down_proj"],
    "falcon_h1": ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj"],
    "falcon_mamba": ["in_proj", "x_proj"],
    "llama4": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "llama4_text": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    "phimoe": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj"],
}
"""LoRA's targets by type, if `all-linear` is not possible. peft refuses `out_proj` of Mamba layers
(`tuners/lora/model.py`). It also wraps routers and grouped projections whose class is `nn.Linear` but which are used
differently; their forward then fails in a real run too."""
NO_ADAPTER = frozenset({"blt", "ctrl", "git"})
"""These types change their embeddings in place, which torch refuses with an adapter: the oracle has only their full
run."""
SDPA = frozenset({"qwen4_exp", "qwen4_exp_text"})
"""The indexer of these types counts in the mask. Values of masks are followed as bool, but not as floats, which eager
attention uses."""
Row = dict[str, str]

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def list_types() -> list[str]:
    """Every type of a causal language model that the installed transformers knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def trace(model_type: str, columns: tuple[str, ...] = COLUMNS, *, limit: int = 0, tracebacks: bool = False) -> Row:
    """`yes`, or the reason why not, by column. `limit`: the time limit for each in seconds; 0: no limit."""
    from support.shrunken_models import count_positions, write_small_model

    with tempfile.TemporaryDirectory(prefix="small-") as home:  # "tmpt" has "mpt" in it, which axolotl has rules for
        try:
            base = write_small_model(model_type, Path(home))
        except Exception as error:
            return dict.fromkeys(columns, f"no small configuration: {_say(error)}")
        config = {**KEYS, "base_model": base}
        if model_type in SDPA:
            config["attn_implementation"] = "sdpa"
        lora = config | LORA | {"lora_target_modules": TARGETS.get(model_type, LORA["lora_target_modules"])}
        longer = lora | {"sequence_len": min(MANY_TOKENS, count_positions(base) // 2)}
        steps: dict[str, Callable[[], None]] = {
            "full": lambda: estimate(config),
            "lora": lambda: estimate(longer),
            "full_checkpointed": lambda: estimate_checkpointed(config, use_reentrant=False),
            "lora_checkpointed": lambda: estimate_checkpointed(longer, use_reentrant=True),
            "oracle": lambda: compare_with_cpu(config, *([] if model_type in NO_ADAPTER else [lora])),
        }
        return {name: _attempt(steps[name], limit, tracebacks=tracebacks) for name in columns}


def _attempt(step: Callable[[], None], limit: int, *, tracebacks: bool) -> str:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end within {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        step()
    except Exception as error:
        if tracebacks:
            traceback.print_exc()
        return _say(error)
    finally:
        signal.alarm(0)
    return "yes"


def _say(error: Exception) -> str:
    from axmem_trace.errors import ConfigError

    text, most = str(error), 240
    if isinstance(error, ConfigError):
        text, most = " | ".join([error.problem, *error.details]), 400
    text = re.sub(r"\S*/tmp\S*?(?=:? )", "the small model", " ".join(text.split())).removeprefix("the small model: ")
    return f"{type(error).__name__}: {text[:most]}"


def estimate(config: dict[str, Any]) -> None:
    """Makes a report like a user. The run must keep something for its backward pass and make gradients."""
    import axmem_trace

    report = axmem_trace.estimate(config, hub="never")
    assert report.phases["step_2"].allocated_bytes > report.after_load.allocated_bytes, "nothing kept for backward"
    assert report.resident.gradients > 0, "no gradients"


def estimate_checkpointed(config: dict[str, Any], *, use_reentrant: bool) -> None:
    """Estimates with gradient checkpointing, if the class supports it."""
    from axmem_trace.errors import ConfigError

    arguments = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    try:
        estimate(config | arguments)
    except ConfigError as error:
        if "can't checkpoint activations" not in error.problem:
            raise
        estimate(config)


def compare_with_cpu(*configs: dict[str, Any]) -> None:
    """Compares in fp32, because the CPU's bf16 kernels keep other statistics than meta and CUDA. Experts run in
    transformers' loop, because meta has no grouped product of fp32 matrices. Both runs use the same fixed routing."""
    from support.cpu_oracle import HostCopies, differences, one_hot_as_on_cuda, record_step, route
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for config in configs:
        name = "LoRA" if "adapter" in config else "full"
        config = {**config, "bf16": False, "experts_implementation": "eager"}
        copies = HostCopies()

        def prepare(recording: Any, built: Any, copies: HostCopies = copies) -> None:
            route(recording, built)
            copies.attach(recording)

        with sdpa_kernel(SDPBackend.MATH):  # meta uses it in any case
            on_meta, for_real = (
                record_step(config, device, prepare=prepare, within=one_hot_as_on_cuda) for device in ("meta", "cpu")
            )
        only_meta, only_real = differences(on_meta, for_real, copies)
        for only, ledger, where in ((only_meta, on_meta, "meta"), (only_real, for_real, "the CPU")):
            assert not only, f"{name}: {sum(only.values())} more on {where}, first {_first(only, ledger.allocations)}"


def _first(only: Counter[Any], allocations: Any) -> str:
    from support.cpu_oracle import all_but_time

    for each in allocations:
        if all_but_time(each) in only:
            return f"{each.nbytes} bytes of {each.op} in {each.phase} of {each.module}"
    return ""


def read_tables() -> dict[str, dict[str, Row]]:
    """The committed tables, by the release of transformers."""
    return {path.stem: _read_table(path) for path in sorted(TABLES.glob("5.*.json"))}


def _read_table(path: Path) -> dict[str, Row]:
    table: dict[str, Row] = json.loads(path.read_text(encoding="utf-8"))
    return table


def write_table(table: dict[str, Row], path: Path) -> None:
    """Writes a line for each type, sorted."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(table.items()))
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def make_rows(types: list[str], columns: tuple[str, ...], limit: int, *, tracebacks: bool) -> Iterator[tuple[str, Row]]:
    """A row for each type, printed when it is made. A process that ends without a row, or does not end, gives a row
    too."""
    context = multiprocessing.get_context("fork")
    for number, model_type in enumerate(types, 1):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_trace_apart, args=(sender, model_type, columns, limit, tracebacks))
        process.start()
        sender.close()
        answered = receiver.poll(limit * (len(columns) + 1))
        try:
            row = receiver.recv() if answered else dict.fromkeys(columns, f"the process hung for {limit} s")
        except EOFError:
            process.join()
            row = dict.fromkeys(columns, f"the process ended with {process.exitcode}")
        process.kill()
        process.join()
        print(f"{number}/{len(types)} {model_type}: {row}", file=sys.stderr, flush=True)
        yield model_type, row


def _trace_apart(sender: Any, model_type: str, columns: tuple[str, ...], limit: int, tracebacks: bool) -> None:
    import torch

    torch.set_num_threads(1)
    sender.send(trace(model_type, columns, limit=limit, tracebacks=tracebacks))


def _import_libraries() -> None:
    """Imports the libraries once, for all later processes. It runs no step, because torch does not allow a fork after a
    backward pass."""
    import transformers
    from support.cpu_oracle import record_step  # noqa: F401
    from support.shrunken_models import write_small_model

    from axmem_trace.config import read_recipe
    from axmem_trace.models import build_model
    from axmem_trace.training.optimizers import build_optimizer
    from axmem_trace.training.trace import make_recording

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as home:
        recipe = read_recipe({**KEYS, **LORA, "base_model": write_small_model("llama", Path(home))}, hub="never")
    build_optimizer(recipe, build_model(recipe).module)
    make_recording(recipe)


def main() -> int:
    """Traces the named types, or all types, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="only these; the table's other rows stay as they are")
    parser.add_argument("--resume", action="store_true", help="leave out what the table has of this transformers")
    parser.add_argument("--only", choices=COLUMNS, action="append", help="only this column (repeat for several)")
    parser.add_argument("--limit", type=int, default=120, help="seconds for each column of each type (default 120)")
    parser.add_argument("--tracebacks", action="store_true", help="print where a type fails")
    parser.add_argument("--table", type=Path, help="the file to write; default: that of the installed transformers")
    options = parser.parse_args()
    _import_libraries()
    import transformers

    path = options.table or TABLES / f"{transformers.__version__}.json"
    keeps = (options.types or options.resume or options.only) and path.exists()
    table = _read_table(path) if keeps else {}
    types = [each for each in options.types or list_types() if not (options.resume and each in table)]
    columns = tuple(options.only or COLUMNS)
    for model_type, row in make_rows(types, columns, options.limit, tracebacks=options.tracebacks):
        table[model_type] = {**table.get(model_type, {}), **row}
        write_table(table, path)
    for column in COLUMNS:
        print(f"{column}: {sum(row.get(column) == 'yes' for row in table.values())} of {len(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
