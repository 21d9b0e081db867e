"""The same step by DeepSpeed itself, in real processes on the CPU that communicate by gloo: the oracle of
`parallel/zero`."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from axmem_trace.ledger import Ledger
from support.real_ranks import run_in_processes

ASSUMPTIONS = ("autocast=false", "optimizer_implementation=for-loop")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@dataclass(frozen=True, slots=True)
class ZeroCase:
    """A configuration. Its `deepspeed` key is DeepSpeed's JSON.

    Attributes:
        divides_first: for ZeRO-3: the base model is partitioned when it is created (`zero.Init`), as without
            quantisation.
    """

    config: dict[str, Any]
    divides_first: bool = True

    @property
    def stage(self) -> int:
        """The stage of ZeRO."""
        return int(self.config["deepspeed"]["zero_optimization"]["stage"])


def record_with_deepspeed(cases: Sequence[ZeroCase], num_ranks: int) -> list[list[Ledger]]:
    """Runs two steps of each case in `num_ranks` processes. Returns the records by case, then by rank."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    return run_in_processes(_run_rank, cases, num_ranks)


def record_zero_on_meta(case: ZeroCase, num_ranks: int, *, rank: int) -> Ledger:
    """Records the same case with our own engine, as one rank of a fake group."""
    from axmem_trace.parallel.install import open_ranks
    from support.kernel_recording import recording_on

    recipe = _read(case, num_ranks)
    recording = recording_on("meta")
    first = case.stage == 3 and case.divides_first
    with (
        patch("axmem_trace.parallel.zero.install.divides_while_loading", lambda recipe: first),
        open_ranks(recipe, recording, rank=rank) as divide,
    ):
        return _record(recipe, recording, "meta", divide)


def _run_rank(cases: Sequence[ZeroCase], rank: int, num_ranks: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_SIZE=str(num_ranks))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    import deepspeed  # type: ignore[import-not-found]

    deepspeed.init_distributed(dist_backend="gloo")
    ledgers = [_run_for_real(case, num_ranks) for case in cases]
    (Path(folder) / f"rank{rank}").write_bytes(pickle.dumps(ledgers))
    dist.barrier()
    os._exit(0)  # DeepSpeed's own groups need no orderly end


def _run_for_real(case: ZeroCase, num_ranks: int) -> Ledger:
    from support.kernel_recording import recording_on

    recipe = _read(case, num_ranks)
    recording = recording_on("cpu")
    return _record(recipe, recording, "cpu", lambda built: _divide(case, recipe, recording, built))


def _read(case: ZeroCase, num_ranks: int) -> Any:
    from axmem_trace.config import read_recipe

    recipe = read_recipe(case.config, hub="never", assumptions=ASSUMPTIONS, num_gpus=num_ranks)
    return replace(recipe, precision=replace(recipe.precision, upcast_before=False))


def _record(recipe: Any, recording: Any, device: str, divide: Any) -> Ledger:
    from axmem_trace.models import build_model
    from axmem_trace.training.optimizers import build_optimizer
    from axmem_trace.training.run import Run
    from axmem_trace.training.trace import garbage_on_demand
    from support.cpu_oracle import autocast_off_on_meta

    built, recorder = build_model(recipe, device=device), recording.recorder
    with garbage_on_demand(), autocast_off_on_meta():
        rank_model = divide(built)
        optimizer = build_optimizer(recipe, built.module)
        rank_model = rank_model.with_optimizer(rank_model, optimizer)
        run = Run(recipe, built, optimizer, recorder, rank_model=rank_model)
        with recording, recorder.watch(built.module):
            run.record()
    return recorder.make_ledger()


class _DeepSpeed:
    """accelerate's `DeepSpeedEngineWrapper`, split into the two parts that `Run` marks."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def backward(self, loss: Any) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Any:
        self._engine.step()
        return self._engine.get_global_grad_norm()


def _divide(case: ZeroCase, recipe: Any, recording: Any, built: Any) -> Any:
    from axmem_trace.parallel.rank_model import RankModel
    from axmem_trace.parallel.zero.install import _tensors

    recorder = recording.recorder
    recorder.mark("load", 0)
    if case.stage == 3 and case.divides_first:
        _divide_base(case, recipe, recording, built)
    tensors = _tensors(built)
    for fact in built.facts.tensors:
        recorder.register(tensors[fact.name], role=fact.role, module=fact.module, device=fact.device)

    def initialise(rank_model: Any, optimizer: Any) -> Any:
        return _initialise(case, recipe, recording, built, rank_model, optimizer)

    return RankModel(call=built.module, facts=built.facts, without_sync=nullcontext, with_optimizer=initialise)


def _divide_base(case: ZeroCase, recipe: Any, recording: Any, built: Any) -> None:
    """Partitions the base model as `zero.Init` does, before adapters are added."""
    import deepspeed
    from torch import nn

    base = nn.Module()
    base.all = nn.ParameterList([each for name, each in built.module.named_parameters() if "lora_" not in name])
    for each in base.all:
        recording.recorder.register(each, role="weight")
    with recording:
        deepspeed.zero.Init(module=base, config_dict_or_path=_filled(case, recipe))


def _initialise(case: ZeroCase, recipe: Any, recording: Any, built: Any, rank_model: Any, optimizer: Any) -> Any:
    import deepspeed

    config = _filled(case, recipe)
    with recording, recording.recorder.watch(built.module):
        engine, *_ = deepspeed.initialize(model=built.module, optimizer=optimizer.optimizers[0], config=config)
    engine.set_gradient_accumulation_boundary(True)

    @contextmanager
    def without_boundary() -> Any:
        engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            engine.set_gradient_accumulation_boundary(True)

    return replace(rank_model, call=engine, engine=_DeepSpeed(engine), without_sync=without_boundary)


def _filled(case: ZeroCase, recipe: Any) -> dict[str, Any]:
    """The JSON with the values that transformers and accelerate fill in."""
    return {
        "train_micro_batch_size_per_gpu": recipe.batch.rows,
        "gradient_accumulation_steps": recipe.batch.gradient_accumulation_steps,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True},
        "steps_per_print": None,
        **case.config["deepspeed"],
    }
