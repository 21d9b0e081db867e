"""Saving a sharded model as a whole: the gathers on each rank's GPU, and the copies in rank 0's host memory.

Source: axolotl 0.21.0 `train.py` `save_trained_model` (line 334), `integrations/expert_parallel/shard.py`
`save_fsdp2_lora_adapter`; transformers 5.20 `trainer.py` `save_model` (4057); accelerate 1.15 `accelerator.py`
`get_state_dict` (4043); torch 2.14 `distributed/_state_dict_utils.py` `_gather_state_dict`; deepspeed 0.19.8
`runtime/engine.py` `_zero3_consolidated_16bit_state_dict` (5631), `checkpoint/utils.py` `clone_tensors_for_torch_save`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from axmem_trace.ledger.allocation import ON_EACH_RANK
from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.parallel.wrapped_names import module_of
from axmem_trace.parallel.zero.parts import Parts
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.tensors import local_part

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@torch.no_grad()
def save_fsdp2(recipe: Recipe, recorder: Recorder, model: nn.Module, optimizer: Any = None) -> None:
    """Gathers the whole model, tensor by tensor, for rank 0's host memory. In a model with adapters, only the adapters
    are saved at the end.

    Args:
        optimizer: its states are in each checkpoint: whole, or as parts beside the model's parts.
    """
    fsdp = recipe.parallel.fsdp
    if fsdp.saves_whole:
        _gather_all(recipe, recorder, model.state_dict().items())
    elif recipe.adapter.kind != "none":
        _gather_adapters(recipe, recorder, model)
    if optimizer is None or not fsdp.saves_states:
        return
    if fsdp.saves_states == "whole":  # accelerate 1.15 `utils/fsdp_utils.py` `save_fsdp_optimizer`
        _gather_all(recipe, recorder, _states(model, optimizer))
    else:
        _copy_parts(recorder, model.state_dict().items())
        _copy_parts(recorder, _states(model, optimizer))


def with_saved_states(
    recipe: Recipe,
    recorder: Recorder,
    model: nn.Module,
    before: Callable[[RankModel, Any], RankModel] | None,
    rank_model: RankModel,
    optimizer: Any,
) -> RankModel:
    """The same rank, whose checkpoints have the optimizer's states in them.

    Args:
        before: what else becomes of the rank when the optimizer is known.
    """
    if before is not None:
        rank_model = before(rank_model, optimizer)
    return replace(rank_model, save=partial(save_fsdp2, recipe, recorder, model, optimizer))


def _copy_parts(recorder: Recorder, values: Iterable[tuple[str, Any]]) -> None:
    """Each rank copies its parts to host memory before they are written (torch 2.14 `distributed/checkpoint/state_dict.py`
    `_maybe_full_or_cpu_state_dict`, `_offload_state_dict_to_cpu`). What is on the host already is not copied."""
    host, saved = HostMemory(recorder), []
    with recorder.as_role("", ON_EACH_RANK):
        for name, value in values:
            if isinstance(value, torch.Tensor) and not recorder.is_on_host(value):
                with recorder.in_module(module_of(name)):
                    saved.append(host.copy_of(local_part(value)))


def _states(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor of the optimizers' states, with its parameter's name, in the optimizers' order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for each in optimizer.optimizers:
        for group in each.param_groups:
            for parameter in group["params"]:
                for value in each.state.get(parameter, {}).values():
                    if isinstance(value, torch.Tensor):
                        yield names[id(parameter)], value


def _gather_all(recipe: Recipe, recorder: Recorder, values: Iterable[tuple[str, Any]]) -> None:
    """Gathers each tensor in full on every rank's GPU, one after the other; rank 0 copies it to host memory."""
    host, is_first = HostMemory(recorder), dist.get_rank() == 0
    saved: list[torch.Tensor] = []
    for name, value in values:
        if not isinstance(value, torch.Tensor):
            continue
        with recorder.in_module(module_of(name)):
            whole = _whole(value, offloaded=recipe.parallel.fsdp.offload_params)
            if is_first:  # the other ranks drop it immediately
                saved.append(host.copy_of(whole))
            del whole


def _gather_adapters(recipe: Recipe, recorder: Recorder, model: nn.Module) -> None:
    """Gathers all adapters in full on the GPU of each rank before they are written."""
    offloaded = recipe.parallel.fsdp.offload_params
    whole: list[tuple[str, torch.Tensor]] = []
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with recorder.in_module(module_of(name)):
                whole.append((name, _whole(parameter, offloaded=offloaded)))
    if dist.get_rank():
        return
    host, saved = HostMemory(recorder), []
    for name, each in whole:
        with recorder.in_module(module_of(name)):
            saved.append(host.copy_of(each))


def _whole(value: Any, *, offloaded: bool) -> torch.Tensor:
    """The full tensor, with the rows of all ranks' shards. The shards of the last ranks may be padded (torch 2.14
    `_to_replicate_tensor` in `distributed/tensor/placement_types.py`). A shard on the host is first copied to the
    GPU."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return value.detach()
    part: torch.Tensor = value._local_tensor
    if offloaded:
        part = part.clone()
    group = value.device_mesh.get_group(value.device_mesh.ndim - 1)
    num_shards = dist.get_world_size(group)
    rows = -(-value.shape[0] // num_shards)
    if rows * num_shards != value.shape[0] and part.shape[0] < rows:
        part = torch.nn.functional.pad(part, (*(0,) * (2 * part.dim() - 1), rows - part.shape[0]))
    whole = torch.empty((rows * num_shards, *value.shape[1:]), dtype=value.dtype, device=part.device)
    _all_gather(whole, part.contiguous(), group=group)
    return whole.narrow(0, 0, value.shape[0])


@torch.no_grad()
def save_zero3(recipe: Recipe, recorder: Recorder, model: nn.Module, parts: Parts) -> None:
    """Gathers the parameters of one module after the other, and rank 0 copies them to the host. Frozen parameters of a
    model with adapters are gathered, but not copied."""
    if not recipe.parallel.zero.gathers_on_save:
        return
    host, is_first = HostMemory(recorder), dist.get_rank() == 0
    saved: dict[int, torch.Tensor] = {}
    adapted = recipe.adapter.kind != "none"
    for module in model.modules():
        own = [each for each in module._parameters.values() if each is not None]
        held = [part for each in own if (part := parts.of(each)) is not None]
        parts.gather_now(held)
        for parameter in own if is_first else ():
            if id(parameter) not in saved and (parameter.requires_grad or not adapted):
                saved[id(parameter)] = host.copy_of(parameter.data)
        for part in held:
            if not part.persists:
                parts.release(part)


@torch.no_grad()
def save_replicated(recorder: Recorder, model: nn.Module) -> None:
    """ZeRO-1 and 2: each rank copies the whole state dict to host memory before rank 0 writes it."""
    host = HostMemory(recorder)
    saved = [host.copy_of(each) for each in model.state_dict().values() if isinstance(each, torch.Tensor)]
    del saved
