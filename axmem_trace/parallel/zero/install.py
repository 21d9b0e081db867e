"""One rank under DeepSpeed: from the loaded model, and later its optimizer, to what the step needs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.parallel.residents import FlatShard, describe_rank, local_tensors
from axmem_trace.parallel.spread import Spread
from axmem_trace.parallel.units import plain_name
from axmem_trace.parallel.zero.loading import cast_model
from axmem_trace.parallel.zero.stage12 import Stage12
from axmem_trace.parallel.zero.stepping import Optimizer, Stepping
from axmem_trace.recipe.parallel import Zero
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode


def with_zero(recipe: Recipe, recording: RecordingMode, built: BuiltModel, *, rank: int | None = None) -> Spread:
    """The model on the GPU in one dtype. The optimizer comes after it.

    Args:
        rank: None: the one that holds the most.
    """
    tensors, recorder = _tensors(built), recording.recorder
    for fact in built.facts.tensors:
        recorder.register(tensors[fact.name], role=fact.role, module=fact.module, device=fact.device)
    del tensors
    dtype = getattr(torch, recipe.precision.load_dtype)
    cast_model(built.module, dtype, buffers=recipe.parallel.zero.casts_buffers)
    return Spread(
        call=built.module,
        facts=built.facts,
        without_sync=_no_optimizer_yet,
        with_optimizer=partial(_take_optimizer, recipe, recording, built, rank),
    )


def _no_optimizer_yet() -> Any:
    raise AssertionError("the engine has no optimizer yet")


def _take_optimizer(
    recipe: Recipe,
    recording: RecordingMode,
    built: BuiltModel,
    rank: int | None,
    spread: Spread,
    optimizer: Optimizer,
) -> Spread:
    """`_configure_zero_optimizer`."""
    zero, recorder = recipe.parallel.zero, recording.recorder
    device = torch.device(recorder.traced_device)
    with recording, recorder.watch(built.module), torch.no_grad():
        stepping = Stepping(optimizer, zero, recorder, built.module)
        engine = Stage12(
            recipe,
            recorder,
            stepping,
            bucket_elements=bucket_elements(zero, built.module),
            device=device,
            free_bytes=partial(_free_bytes, recipe, recorder),
            rank=rank,
        )
    shards = tuple(_shards(built.module, engine))
    return replace(
        spread,
        facts=describe_rank(built.facts, _tensors(built), shards),
        shards=shards,
        engine=engine,
        without_sync=engine.without_boundary,
    )


def bucket_elements(zero: Zero, model: nn.Module) -> int:
    """`reduce_bucket_size`; "auto": the hidden size squared (transformers `integrations/deepspeed.py`
    `trainer_config_finalize`)."""
    return zero.reduce_bucket_elements if zero.reduce_bucket_elements >= 0 else hidden_size(model) ** 2


def hidden_size(model: nn.Module) -> int:
    """The size that "auto" follows."""
    config = unwrapped(model).config
    for holder in (config, getattr(config, "text_config", None)):
        size = getattr(holder, "hidden_size", None)
        if size is None:
            size = max(getattr(holder, "hidden_sizes", None) or (0,))
        if size:
            return int(size)
    raise AssertionError("a model without a hidden size is refused when its configuration is read")


def _free_bytes(recipe: Recipe, recorder: Recorder) -> int:
    """Bytes that the card has left (`available_memory`); without a named card there is always room."""
    if not recipe.gpu.memory_bytes:
        return 1 << 62
    return recipe.gpu.memory_bytes - recipe.gpu.outside_bytes - recorder.live_bytes()


def _shards(model: nn.Module, engine: Stage12) -> list[FlatShard]:
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    shards = []
    for group in engine.groups:
        parts = {names[id(each)]: each.numel() for each in group.parameters}
        is_adapter = all("lora_" in name for name in parts)
        shards.append(FlatShard("", "adapter" if is_adapter else "weight", group.flat, parts, is_part=False))
    return shards


def _tensors(built: BuiltModel) -> dict[str, torch.Tensor]:
    return local_tensors(built.module) | {state.name: state.tensor for state in built.state_tensors}
