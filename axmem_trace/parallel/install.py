"""`open_ranks`: one rank of a distributed run, from the process group to the wrapped model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from axmem_trace.models.built import BuiltModel
from axmem_trace.models.dtypes import cast_as_axolotl
from axmem_trace.models.quantisation.staged import stage_packed_weights
from axmem_trace.models.warm_up import warm_up
from axmem_trace.parallel import tensor
from axmem_trace.parallel.context import split_by_ring
from axmem_trace.parallel.ddp.folded import wrap_short_model
from axmem_trace.parallel.ddp.wrap import ddp_runs_on_meta, rebuild_buckets
from axmem_trace.parallel.ddp.wrap import wrap_model as wrap_with_ddp
from axmem_trace.parallel.fake_group.in_place import (
    gathers_recorded,
    resizes_recorded,
    shapes_planned_unseen,
    streams_recorded,
)
from axmem_trace.parallel.fake_group.process_group import exchange_rules, open_process_group
from axmem_trace.parallel.fsdp import fsdp1, fsdp2
from axmem_trace.parallel.fsdp.offload import as_offloaded, copy_to_host, offloads_on_meta
from axmem_trace.parallel.fsdp.offload_flat import flat_shards_offload_on_meta, norm_comes_to_host
from axmem_trace.parallel.fsdp.other_shards import with_other_ranks
from axmem_trace.parallel.fsdp.staged import load_staged
from axmem_trace.parallel.host import copies_on_host
from axmem_trace.parallel.rank_facts import describe_rank, flat_shards, local_tensors, sharded_names
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.parallel.ranks import all_alike, group_fsdp1, group_fsdp2, reads_weights
from axmem_trace.parallel.reference import divide_reference
from axmem_trace.parallel.saving import save_fsdp2, with_saved_states
from axmem_trace.parallel.zero.install import with_zero
from axmem_trace.parallel.zero.linear import linear_may_change
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode

Prepare = Callable[[BuiltModel], "RankModel | None"]


@contextmanager
def open_ranks(recipe: Recipe, recording: RecordingMode, *, rank: int | None = None) -> Iterator[Prepare]:
    """While open, this process is one rank of the run. The yielded function wraps or shards a built model.

    With one GPU, or with an engine that is not modelled, nothing is opened and nothing is sharded.

    Args:
        rank: None: the rank that needs the most memory, which ZeRO-1 and 2 choose themselves; with other engines, rank
            0.
    """
    parallel, recorder = recipe.parallel, recording.recorder
    if parallel.engine not in (*ENGINES, *ZERO_ENGINES):
        yield lambda built: None
        return
    with ExitStack() as stack:
        stack.enter_context(open_process_group(recorder, rank=rank or 0, num_ranks=parallel.num_gpus))
        stack.enter_context(records_ranks(recorder))
        stack.enter_context(streams_recorded(recorder))
        stack.enter_context(fsdp1.fsdp1_runs_on_meta())
        stack.enter_context(fsdp2.fsdp2_runs_on_meta())
        if parallel.fsdp.offload_params:
            stack.enter_context(offloads_on_meta(recorder))
            stack.enter_context(flat_shards_offload_on_meta(recorder))
        stack.enter_context(ddp_runs_on_meta())
        if parallel.engine == "tensor":
            stack.enter_context(tensor.gradients_summed_by_hooks())
            recording.add_rules(exchange_rules())
        if parallel.engine == "zero3":
            stack.enter_context(linear_may_change())
        yield lambda built: divide(recipe, recording, built, rank=rank)


@contextmanager
def records_ranks(recorder: Recorder) -> Iterator[None]:
    """Lets the recorder see calls of the engines that are not PyTorch operators."""
    with resizes_recorded(recorder), shapes_planned_unseen(recorder), gathers_recorded(recorder):
        yield


def divide(recipe: Recipe, recording: RecordingMode, built: BuiltModel, *, rank: int | None = None) -> RankModel:
    """Wraps the model as accelerate's `prepare` does. This is recorded as the end of loading."""
    recorder = recording.recorder
    reference = divide_reference(recipe, recording, built.reference)
    recorder.mark("load", 0)
    with warnings.catch_warnings(), recording, recorder.watch(built.module):
        warnings.simplefilter("ignore")
        if recipe.parallel.engine in ZERO_ENGINES:
            rank_model = with_zero(recipe, recording, built, rank=rank)
        else:
            rank_model = ENGINES[recipe.parallel.engine](recipe, recorder, built)
        return replace(rank_model, reference=reference, groups=split_by_ring(rank_model.groups, recipe))


def _with_ddp(recipe: Recipe, recorder: Recorder, built: BuiltModel) -> RankModel:
    _register_whole(recorder, built)
    settings = recipe.parallel.ddp
    if recorder.layers is not None:
        wrapped, rebuild = wrap_short_model(built.module, settings, recorder, recorder.layers.repetition)
    else:
        wrapped = wrap_with_ddp(built.module, settings)
        rebuild = partial(rebuild_buckets, wrapped, recorder)
    return RankModel(
        call=wrapped,
        facts=describe_rank(built.facts, _tensors_of_rank(built)),
        groups=all_alike(recipe.parallel.num_gpus),
        without_sync=wrapped.no_sync,
        before_repeat=None if recipe.parallel.syncs_each_batch else rebuild,  # else it happens in the first step
    )


def _with_fsdp2(recipe: Recipe, recorder: Recorder, built: BuiltModel) -> RankModel:
    model: Any = built.module
    fsdp = recipe.parallel.fsdp
    if not fsdp.loads_on_host:
        _register_whole(recorder, built)
    if fsdp.stages_packed:
        stage_packed_weights(model)
    whole = [] if fsdp.loads_on_host else [each.data for each in model.parameters()]  # `original_sd` keeps them
    with recorder.paused() if fsdp.loads_on_host else nullcontext():
        fsdp2.shard_model(model, recipe, device_type=recorder.traced_device)
    whole.clear()
    if fsdp.stages_packed:
        load_staged(recipe, built, recorder)
    elif fsdp.loads_on_host:
        reads = recorder.traced_device == "meta" and reads_weights(recipe.parallel, torch.distributed.get_rank())
        waiting = copies_on_host(model, recorder) if reads else {}
        fsdp2.load_shards(model, recorder, waiting, copy_to_host(recorder) if fsdp.offload_params else None)
    facts = describe_rank(built.facts, _tensors_of_rank(built), sharded=sharded_names(model))
    rank_model = RankModel(
        call=model,
        facts=facts,
        groups=group_fsdp2(model, recipe.parallel),
        without_sync=lambda: _unsynced(model),
        save=partial(save_fsdp2, recipe, recorder, model) if fsdp.saves_whole or _has_adapter(recipe) else None,
    )
    if fsdp.offload_params:
        rank_model = as_offloaded(rank_model, recorder)
    if not fsdp.saves_states:
        return rank_model
    save_states = partial(with_saved_states, recipe, recorder, model, rank_model.with_optimizer)
    return replace(rank_model, with_optimizer=save_states)


def _with_tensor(recipe: Recipe, recorder: Recorder, built: BuiltModel) -> RankModel:
    model, parallel = built.module, recipe.parallel
    with recorder.paused():
        tensor.shard_model(model, recipe, device_type=recorder.traced_device)
    facts = describe_rank(built.facts, _tensors_of_rank(built), sharded=sharded_names(model))
    warm_up(recorder, recipe, sum(fact.nbytes for fact in facts.tensors))
    _register_whole(recorder, built)
    cast_as_axolotl(model, recipe, experts_quantised=False)  # again: a run casts the sharded model
    _register_whole(recorder, built)
    return RankModel(
        call=model,
        facts=facts,
        groups=tensor.group_ranks(model, parallel),
        without_sync=lambda: _unsynced(model) if parallel.mesh.shard > 1 else nullcontext(),
    )


def _has_adapter(recipe: Recipe) -> bool:
    return recipe.adapter.kind != "none"


@contextmanager
def _unsynced(model: Any) -> Iterator[None]:
    """accelerate `Accelerator.no_sync` for FSDP2."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _with_fsdp1(recipe: Recipe, recorder: Recorder, built: BuiltModel) -> RankModel:
    model = built.module
    fsdp = recipe.parallel.fsdp
    if not fsdp.loads_on_host:
        _register_whole(recorder, built)
    wrapped = fsdp1.wrap_model(model, recipe, recorder, arrives=_arrival(recipe, recorder))
    tensors, shards = _tensors_of_rank(built), tuple(flat_shards(model, wrapped))

    def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
        with norm_comes_to_host() if fsdp.offload_params else nullcontext():
            norm: torch.Tensor = wrapped.clip_grad_norm_(max_norm if max_norm > 0 else float("inf"))
        return norm

    rank_model = RankModel(
        call=wrapped,
        facts=describe_rank(built.facts, tensors, shards),
        groups=group_fsdp1(wrapped, recipe.parallel),
        without_sync=wrapped.no_sync,
        clip=clip,
        shards=shards,
        with_optimizer=partial(with_other_ranks, recipe, wrapped, recorder),
    )
    return replace(as_offloaded(rank_model, recorder), clip=clip) if fsdp.offload_params else rank_model


def _arrival(recipe: Recipe, recorder: Recorder) -> Callable[[nn.Module], None]:
    """Records that a module's parameters are moved to the GPU before they are flattened. Does nothing if they are there
    already."""

    def arrive(module: nn.Module) -> None:
        for each in (*module._parameters.values(), *module._buffers.values()):
            if each is not None:
                recorder.register(each, role="weight")

    return arrive if recipe.parallel.fsdp.loads_on_host else lambda module: None


def _tensors_of_rank(built: BuiltModel) -> dict[str, torch.Tensor]:
    """This rank's tensors by name. Each rank has the full quantisation states."""
    return local_tensors(built.module) | {state.name: state.tensor for state in built.state_tensors}


def _register_whole(recorder: Recorder, built: BuiltModel) -> None:
    """Registers the whole model, or this rank's parts of it, on this rank's GPU."""
    tensors = _tensors_of_rank(built)
    for fact in built.facts.tensors:
        recorder.register(tensors[fact.name], role=fact.role, module=fact.module, device=fact.device)


ENGINES: dict[str, Callable[[Recipe, Recorder, BuiltModel], RankModel]] = {
    "ddp": _with_ddp,
    "fsdp1": _with_fsdp1,
    "fsdp2": _with_fsdp2,
    "tensor": _with_tensor,
}
"""The engines that wrap the model before the optimizer is made."""
ZERO_ENGINES = ("zero1", "zero2", "zero3")
"""Stages of DeepSpeed that are modelled."""
