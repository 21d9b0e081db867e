"""A real run on several GPUs, with one process for each GPU: `torchrun` starts `measure_on_gpu.py` in each of them.

Used by `gpu_run.py`. The wrappers are those that the estimate runs on meta (`axmem_trace/parallel/install.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from axmem_trace.errors import ConfigError
from axmem_trace.models.built import BuiltModel
from axmem_trace.parallel.ddp.wrap import shapes_agree
from axmem_trace.parallel.fsdp.fsdp2 import packed_weights_kept
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.recipe.recipe import Recipe

REAL_ENGINES = ("none", "ddp", "fsdp1", "fsdp2")


def world_size() -> int:
    """The number of ranks of the run: the processes that torchrun has started, or the value of `FAKE_RANKS`; else 1."""
    return num_fake_ranks() or int(os.environ.get("WORLD_SIZE", "1"))


def num_fake_ranks() -> int:
    """The number of ranks of PyTorch's `fake` process group, of which this process is rank 0; 0 without it. Its
    collectives return immediately. So values are wrong, and memory is right except NCCL's."""
    return int(os.environ.get("FAKE_RANKS", "0"))


def rank() -> int:
    """The rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def check_ranks(recipe: Recipe) -> None:
    """Refuses settings that only the estimate supports.

    Raises:
        ConfigError: the message says what to change.
    """
    parallel = recipe.parallel
    refusals = (
        (parallel.num_gpus != world_size(), "num_gpus", parallel.num_gpus, f"{world_size()}, or torchrun with as many"),
        (parallel.engine not in REAL_ENGINES, "engine", parallel.engine, ", ".join(REAL_ENGINES)),
        (
            parallel.mesh.tensor > 1 or parallel.mesh.context > 1 or parallel.mesh.expert > 1,
            "mesh",
            "tensor, context or expert parallelism",
            "none of them",
        ),
        (parallel.engine == "fsdp1" and parallel.fsdp.offload_params, "fsdp_config.offload_params", True, "false"),
        (
            parallel.engine == "fsdp1" and parallel.fsdp.loads_on_host,
            "fsdp_config.cpu_ram_efficient_loading",
            True,
            "false",
        ),
    )
    for refused, key, value, accepted in refusals:
        if refused:
            raise ConfigError(
                problem="this can be estimated, but not run here for real", key=key, value=value, accepted=accepted
            )


def loads_on_host(recipe: Recipe) -> bool:
    """Whether the weights are read into host memory and moved to the GPU as a whole: with FSDP there is no device map
    (axolotl `loaders/model.py`)."""
    return recipe.parallel.engine in ("fsdp1", "fsdp2") and recipe.quantisation.method == "none"


@contextmanager
def joined(device: str) -> Iterator[None]:
    """While open, this process belongs to the process group of torchrun. Does nothing without torchrun."""
    if world_size() == 1:
        yield
        return
    if num_fake_ranks():
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_fake_ranks())
    elif device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    try:
        with packed_weights_kept():  # axolotl's patches
            yield
    finally:
        dist.destroy_process_group()


def divide_for_real(recipe: Recipe, recorder: Any, built: BuiltModel) -> RankModel | None:
    """The model in the engine's wrapper; None on one GPU. The run saves nothing: only training is measured."""
    from axmem_trace.parallel.install import divide

    if recipe.parallel.engine == "none":
        return None
    if recipe.parallel.fsdp.loads_on_host:
        _leave_weights(built.module)
    else:
        built.module.to(recorder.device)
    fsdp = replace(recipe.parallel.fsdp, saves_whole=False, saves_states="")
    recipe = replace(recipe, parallel=replace(recipe.parallel, fsdp=fsdp))
    with shapes_agree() if num_fake_ranks() else nullcontext():
        return replace(divide(recipe, recorder, built), save=None)


def _leave_weights(model: torch.nn.Module) -> None:
    """Moves the model to meta, and its buffers to the GPU: shards are made before they are loaded."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    model.to("meta")
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    for name, buffer in buffers.items():
        path, _, own_name = name.rpartition(".")
        model.get_submodule(path)._buffers[own_name] = buffer.to("cuda")


def gather(value: Any) -> list[Any]:
    """The values of all ranks, by rank."""
    if world_size() == 1 or num_fake_ranks():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found
