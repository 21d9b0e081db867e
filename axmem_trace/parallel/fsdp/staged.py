"""FSDP2's loading of packed weights that are staged in rank 0's host memory: rank 0 sends a shard of each tensor to
each rank, one tensor after the other.

Source: axolotl 0.21 `monkeypatch/accelerate/fsdp2_nf4.py` `_distribute_nf4_state`, `loaders/nf4.py` `_load_nf4_model`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from axmem_trace.models.built import BuiltModel
from axmem_trace.notes import Note
from axmem_trace.parallel.fsdp.offload import put_on_host
from axmem_trace.parallel.host import copies_on_host
from axmem_trace.parallel.wrapped_names import module_of
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.tensors import local_part


def load_staged(recipe: Recipe, built: BuiltModel, recorder: Recorder) -> None:
    """Allocates this rank's shards in the order in which rank 0 sends them. The model is already sharded, but has no
    weights yet.

    On rank 0, each full tensor is in host memory until it is sent. While it is sent, the full tensor is also on the
    GPU, padded so that all shards are equal.
    """
    model: Any = built.module
    _note(recipe, recorder)
    waiting = copies_on_host(model, recorder) if dist.get_rank() == 0 else {}  # the other ranks load to meta
    divided = _divided(model)
    for name, parameter in model.named_parameters():
        with recorder.in_module(module_of(name)):
            whole = _send(parameter, recorder) if waiting else None
            waiting.pop(id(parameter), None)
            if recipe.parallel.fsdp.offload_params:
                put_on_host(recorder, divided[id(parameter)])
            else:
                recorder.register(local_part(parameter), role="weight", module=module_of(name))
            del whole
    for name, buffer in model.named_buffers():
        recorder.register(buffer, role="weight", module=module_of(name))
    for state in built.state_tensors:
        recorder.register(state.tensor, role="weight", module=state.module)


def _note(recipe: Recipe, recorder: Recorder) -> None:
    text = "rank 0 packs the weights on its GPU in chunks, keeps them on the host, and sends each rank its part"
    recorder.notes.append(Note(kind="ruled", key="fsdp_config.cpu_ram_efficient_loading", text=text))
    if recipe.kernels.lora:
        text = (
            "packed weights that are staged on the host are dequantised when a fused LoRA kernel reads them, and the kernel "
            "keeps them whole until its backward, of all layers at once if checkpointing is not reentrant; without the "
            "kernels nothing is kept (`lora_qkv_kernel`, `lora_o_kernel` and `lora_mlp_kernel: false`)"
        )
        recorder.notes.append(Note(kind="warning", key="lora_kernels", text=text))


def _send(parameter: nn.Parameter, recorder: Recorder) -> torch.Tensor:
    """The full tensor on the GPU, padded to the rows of all ranks' shards together."""
    rows = local_part(parameter).shape[0] if parameter.dim() else 1
    shape = (rows * dist.get_world_size(), *parameter.shape[1:])
    return torch.zeros(shape, dtype=parameter.dtype, device=recorder.traced_device)


def _divided(model: nn.Module) -> dict[int, Any]:
    """FSDP's own object for each parameter, by the parameter's `id`."""
    from torch.distributed.fsdp import FSDPModule

    groups = [
        group
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for group in _groups(module._get_fsdp_state())
    ]
    return {id(each.sharded_param): each for group in groups for each in group.fsdp_params}


def _groups(state: Any) -> list[Any]:
    """A module's parameter groups. Until torch 2.12, a module has at most one."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []
