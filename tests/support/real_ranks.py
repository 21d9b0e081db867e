"""The same step in real processes on the CPU that communicate by gloo: each rank's real allocations.

It is the oracle of the fake process group on meta, because everything below PyTorch's operators is real.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from axmem_trace.ledger import Allocation, Ledger, Phase
from support.cpu_oracle import all_but_time
from support.new_process import in_new_processes
from support.tiny_models import write_tiny_model

ASSUMPTIONS = ("autocast=false", "optimizer_implementation=foreach")


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration, fields of `recipe.parallel.fsdp` that no key sets, the dtype of adapters, and the release of axolotl:
    the newest has no FSDP1."""

    config: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    adapter_dtype: str = "float32"
    axolotl: str = ""


def tiny_run(folder: Path) -> dict[str, Any]:
    """A llama with an odd vocabulary: parts of the embedding differ between the ranks."""
    return {
        "base_model": write_tiny_model("llama", folder / "llama", vocab_size=97),
        "sequence_len": 24,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "attn_implementation": "eager",
        "bf16": True,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "gradient_checkpointing": False,
    }


def record_for_real(cases: Sequence[Case], num_ranks: int) -> list[list[Ledger]]:
    """Runs two steps of each case in the same `num_ranks` processes. Returns the records by case, then by rank."""
    return run_in_processes(_run_rank, cases, num_ranks)


def run_in_processes(run_rank: Callable[..., None], cases: Sequence[Any], num_ranks: int) -> list[list[Ledger]]:
    """Runs `run_rank(cases, rank, num_ranks, folder)` in one process for each rank. It must write its ledgers to the
    file `rank{rank}` in the folder.

    Returns the records by case, then by rank."""
    with tempfile.TemporaryDirectory() as folder:
        exit_codes = in_new_processes(run_rank, [(cases, rank, num_ranks, folder) for rank in range(num_ranks)])
        assert exit_codes == [0] * num_ranks
        by_rank = [pickle.loads((Path(folder) / f"rank{rank}").read_bytes()) for rank in range(num_ranks)]
    return [list(records) for records in zip(*by_rank, strict=True)]


def record_on_meta(case: Case, num_ranks: int, *, rank: int = 0) -> Ledger:
    """Records the same case on meta, as one rank of a fake group."""
    from axmem_trace.parallel.install import open_ranks
    from axmem_trace.tracing.recording_mode import RecordingMode

    recipe = _read(case, num_ranks)
    recording = RecordingMode()
    with open_ranks(recipe, recording, rank=rank) as divide:
        return _record(recipe, recording, "meta", divide)


def _run_rank(cases: Sequence[Case], rank: int, num_ranks: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    ledgers = [_run_for_real(_read(case, num_ranks)) for case in cases]
    (Path(folder) / f"rank{rank}").write_bytes(pickle.dumps(ledgers))
    dist.barrier()
    dist.destroy_process_group()


def _run_for_real(recipe: Any) -> Ledger:
    from contextlib import nullcontext

    from axmem_trace.parallel.install import divide, records_ranks
    from axmem_trace.parallel.tensor import gradients_summed_by_hooks
    from support.kernel_recording import recording_on

    recording = recording_on("cpu")
    hooks = gradients_summed_by_hooks() if recipe.parallel.engine == "tensor" else nullcontext()
    with records_ranks(recording.recorder), hooks, _cpu_as_gpu():
        return _record(recipe, recording, "cpu", lambda built: divide(recipe, recording, built))


def _read(case: Case, num_ranks: int) -> Any:
    from axmem_trace.config import read_recipe

    recipe = read_recipe(
        case.config,
        hub="never",
        assumptions=(*ASSUMPTIONS, f"adapter_dtype={case.adapter_dtype}"),
        num_gpus=num_ranks,
        axolotl=case.axolotl,
    )
    assert recipe.parallel.engine == ("fsdp1" if case.config.get("fsdp_version") == 1 else recipe.parallel.engine)
    recipe = replace(
        recipe, precision=replace(recipe.precision, upcast_before=False, autocast=False, output_dtype="same")
    )
    fsdp = replace(recipe.parallel.fsdp, **case.changes)
    return replace(recipe, parallel=replace(recipe.parallel, fsdp=fsdp))


def _record(recipe: Any, recording: Any, device: str, divide: Any) -> Ledger:
    from axmem_trace.models import build_model
    from axmem_trace.models.reference import build_reference
    from axmem_trace.training.optimizers import build_optimizer
    from axmem_trace.training.run import Run
    from axmem_trace.training.trace import garbage_on_demand
    from support.cpu_oracle import autocast_off_on_meta

    built = build_model(recipe, device=device)
    built = replace(built, reference=build_reference(recipe, device=device))
    with garbage_on_demand(), autocast_off_on_meta(), _summed():
        rank_model, recorder = divide(built), recording.recorder
        run = Run(recipe, built, build_optimizer(recipe, built.module), recorder, rank_model=rank_model)
        with recording, recorder.watch(built.module, **run.objective.extra_models()):
            run.record()
    return recorder.make_ledger()


@contextmanager
def _cpu_as_gpu() -> Iterator[None]:
    """FSDP1 sends states only from a GPU, and nothing can be pinned without one."""
    import torch
    from torch.distributed.fsdp import _init_utils

    unchecked = patch.object(_init_utils, "_check_module_states_for_sync_module_states", lambda states: None)
    waits = patch.object(torch.cpu.Stream, "synchronize", lambda stream: None, create=True)
    with unchecked, waits, patch.object(torch.Tensor, "pin_memory", torch.Tensor.clone):
        yield


@contextmanager
def _summed() -> Iterator[None]:
    """gloo cannot average while it reduces. So FSDP2 sums and divides in place, on both sides."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    init = FSDPParamGroup.__init__

    def init_summed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.force_sum_reduction_for_comms = True

    with patch.object(FSDPParamGroup, "__init__", init_summed):
        yield


def assert_same(on_meta: Ledger, real: Ledger, *, summed_bytes: int = 0) -> None:
    """Checks that both make the same allocations and have the same peaks. A thread of gloo may keep the tensors that it
    sends a little longer than the step does.

    Args:
        summed_bytes: size of a gradient that a hook sums. While gloo references it, autograd copies it.
    """
    in_threads = any(_counts(each) and each.op.startswith("_c10d_functional") for each in real.allocations)
    ours, theirs = (Counter(_describe(each, kept=not in_threads)) for each in (on_meta, real))
    only_meta, only_real = ours - theirs, theirs - ours
    for copied in [each for each in only_real if each[1] == summed_bytes and "new_empty_strided" in each[4]]:
        del only_real[copied]
    assert (only_meta, only_real) == (Counter(), Counter()), (only_meta, only_real)
    kept = [Counter(each for each in _describe(ledger, kept=True) if each[_KEPT]) for ledger in (on_meta, real)]
    assert kept[0] <= kept[1]
    late = max(each.nbytes for each in real.allocations if _counts(each) and _is_exchanged(each))
    late *= 4 if in_threads else 1  # the sent and the received tensors of two collectives
    for phase in ("forward", "backward"):
        for step in (1, 2):
            expected, found = _peak(on_meta, phase, step), _peak(real, phase, step)
            assert expected <= found <= expected + late


def _is_exchanged(each: Allocation) -> bool:
    return (each.bucket == "workspace" and bool(each.role)) or each.op.startswith("_c10d_functional")


_KEPT = 7
"""The index in a row of `_describe` that says whether backward keeps the allocation."""


def _describe(ledger: Ledger, *, kept: bool) -> Iterator[tuple[Any, ...]]:
    """A row for each allocation. Single numbers are ignored, because on a CPU it is not known which of them are on the
    host.

    Args:
        kept: False omits the field that says whether backward keeps the allocation, because tensors that a rank sends
            or receives may still be alive.
    """
    for each in ledger.allocations:
        if _counts(each):
            yield (each.step, *all_but_time(each if kept else replace(each, kept=False)))


def _counts(each: Allocation) -> bool:
    if each.phase == "load" and each.op == "aten.empty.memory_format" and each.nbytes < 1024:
        return False  # DDP compares shapes (`_send_shapes`): on a GPU in one block, here a host's block counts too
    if each.role == "reference" and not each.op:
        return False  # a second model arrives in FSDP1's `param_init_fn`, which is only called for meta tensors
    return each.phase != "optimizer" and each.nbytes > 8


def _peak(ledger: Ledger, phase: Phase, step: int) -> int:
    """The maximum of bytes alive at once in a phase of a step, only of allocations since the step began."""
    start = min(mark.tick for mark in ledger.marks if mark.step == step)
    changes = [
        (each.allocated_tick, each.nbytes)
        for each in ledger.allocations
        if each.allocated_tick >= start and _counts(each)
    ]
    changes += [
        (each.freed_tick, -each.nbytes) for each in ledger.allocations if each.allocated_tick >= start and _counts(each)
    ]
    live = most = 0
    for tick, change in sorted(changes):
        live += change
        mark = ledger.mark_at(tick)
        if (mark.phase, mark.step) == (phase, step):
            most = max(most, live)
    return most
