"""A second model in a run with several ranks: TRL wraps it separately, before the policy is wrapped.

Source: TRL 1.14.1 `models/utils.py` `prepare_fsdp`, called in `__init__` of the DPO, KTO and GRPO trainers; torch 2.14
`distributed/fsdp/_fully_shard/_fully_shard.py` `fully_shard` (`_move_states_to_device`). Under DDP accelerate only moves
the model to the GPU (`prepare_model(evaluation_mode=True)`). DeepSpeed: TRL `prepare_deepspeed`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from axmem_trace.parallel.fsdp import fsdp1, fsdp2
from axmem_trace.parallel.zero.frozen import divide_frozen
from axmem_trace.parallel.zero.install import divides_while_loading
from axmem_trace.parallel.zero.loading import cast_model
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode

Forward = Callable[..., Any]


def divide_reference(recipe: Recipe, recording: RecordingMode, model: nn.Module | None) -> Forward | None:
    """Shards the model across the ranks, as part of loading.

    FSDP2: the whole model is one unit, so a forward gathers all of it. FSDP1: the same units as in the policy. ZeRO-1
    and 2: an engine of stage 0, which only casts the model to the dtype of the run. ZeRO-3: sharded like the policy.

    Returns:
        The forward to call; None if it is the model's own forward, or if there is no model.
    """
    engine = recipe.parallel.engine
    if model is None or engine in ("none", "ddp"):
        return None
    recorder = recording.recorder
    recorder.mark("load", 0)
    with warnings.catch_warnings(), recording, torch.no_grad():
        warnings.simplefilter("ignore")
        if engine == "zero3":
            divide_frozen(recipe, recorder, model, while_loading=divides_while_loading(recipe))
            return None
        if engine.startswith("zero"):
            dtype = getattr(torch, recipe.precision.load_dtype)
            cast_model(model, dtype, buffers=recipe.parallel.zero.casts_buffers)
            return None
        if engine == "fsdp1":
            wrapped: Forward = fsdp1.wrap_model(model, recipe, recorder, arrives=lambda each: _arrive(recorder, each))
            return wrapped
        for module in model.modules():
            _arrive(recorder, module)
        _shard_whole(model, recipe, device_type=recorder.traced_device)
    return model


def _shard_whole(model: nn.Module, recipe: Recipe, *, device_type: str) -> None:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, **fsdp2.unit_options(recipe, fsdp2.make_mesh(recipe.parallel.mesh, device_type)))


def _arrive(recorder: Recorder, module: nn.Module) -> None:
    """Records that the module's full tensors are moved to the GPU before they are sharded."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            recorder.register(tensor, role="reference")
