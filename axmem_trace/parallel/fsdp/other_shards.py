"""FSDP1: the optimizer's parameters as another rank has them.

All ranks have flat shards of equal sizes, so their passes allocate the same. With `use_orig_params` the optimizer steps
over views of the shards, one for each parameter that has a part in them. Which parameters these are differs from rank to
rank (torch 2.14 `distributed/fsdp/_flat_param.py`, `_init_shard_metadata`, `_use_sharded_views`,
`_use_sharded_grad_views`), and with them the sizes of the optimizer's states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.parallel.ranks import alike_but_for_step, choose_recorded
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder


def with_other_ranks(
    recipe: Recipe, wrapped: Any, recorder: Recorder, rank_model: RankModel, optimizer: Any
) -> RankModel:
    """The same rank, with those that differ from it in clipping and `TracedOptimizer.step` alone.

    There are none if the optimizer does more than that; then fewer ranks are recorded, each in a trace of its own.
    """
    is_plain = not (optimizer.hooked or optimizer.releases_gradients or optimizer.replaces_parameters)
    has_states = next(iter(optimizer.state_tensors()), None) is not None
    does_more = has_states or recipe.optimizer.grokfast or recipe.precision.grad_scaler
    if not is_plain or does_more or recorder.traced_device != "meta":
        return replace(rank_model, groups=choose_recorded(rank_model.groups))
    others = alike_but_for_step(rank_model.groups, dist.get_rank())
    return replace(rank_model, other_ranks=others, as_rank=make_as_rank(wrapped, recorder))


def make_as_rank(wrapped: Any, recorder: Recorder) -> Callable[[int], AbstractContextManager[None]]:
    """A function that gives parameters, and the gradients that they have now, the views of another rank.

    Call it after backward; while what it returns is open, the storages stay those of the recorded rank.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    units: list[Any] = FullyShardedDataParallel.fsdp_modules(wrapped)
    handles = [unit._handle for unit in units if unit._has_params]

    @contextmanager
    def as_rank(rank: int) -> Iterator[None]:
        with recorder.paused():
            for handle in handles:
                _use_shard(handle, rank % handle.world_size)
        try:
            yield
        finally:
            with recorder.paused():
                for handle in handles:
                    _use_shard(handle, handle.rank)

    return as_rank


def _use_shard(handle: Any, shard: int) -> None:
    """The last lines of `FlatParamHandle.shard`, for any shard."""
    size = handle.flat_param.numel()
    whole = torch.empty(handle.flat_param._unpadded_unsharded_size, device="meta")
    _, padding = handle._get_unpadded_shard(whole, shard, handle.world_size)
    handle._init_shard_metadata(padding, size * shard, size * (shard + 1) - 1)
    handle._use_sharded_views()
    handle._use_sharded_grad_views()
