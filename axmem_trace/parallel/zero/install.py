"""One rank with DeepSpeed: makes the `RankModel` from the loaded model, and later the engine from the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from axmem_trace.models.built import BuiltModel, unwrapped
from axmem_trace.notes import Note
from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.rank_facts import FlatShard, describe_rank, local_tensors, with_parameters_on_host
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.parallel.saving import save_replicated, save_zero3
from axmem_trace.parallel.wrapped_names import plain_name
from axmem_trace.parallel.zero.leaves import leaf_test
from axmem_trace.parallel.zero.linear import use_linear
from axmem_trace.parallel.zero.loading import cast_model, divide_base, divide_rest
from axmem_trace.parallel.zero.parts import Part, Parts
from axmem_trace.parallel.zero.stage3 import Sizes, Stage3
from axmem_trace.parallel.zero.stage12 import Stage12
from axmem_trace.parallel.zero.stepping import Optimizer, Stepping
from axmem_trace.recipe.parallel import Zero
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.units import format_bytes

Engine = Stage12 | Stage3
MakeEngine = Callable[[Stepping], tuple[Engine, dict[str, torch.Tensor], list[FlatShard]]]
"""Makes the engine from the optimizer. It also returns this rank's tensors by name, and the flat tensors that contain
several parameters."""


def with_zero(recipe: Recipe, recording: RecordingMode, built: BuiltModel, *, rank: int | None = None) -> RankModel:
    """Puts the model on the GPU, in one dtype (ZeRO-1 and 2) or sharded (ZeRO-3). The optimizer is made later.

    Args:
        rank: None: the rank that needs the most memory.
    """
    zero, model, recorder = recipe.parallel.zero, built.module, recording.recorder
    make: MakeEngine
    save: Callable[[], None] | None = partial(save_replicated, recorder, model)
    _note_host(recipe, recorder, built)
    if zero.stage == 3:
        parts = Parts(
            recorder,
            HostMemory(recorder, pins=zero.pins_params),
            offload=bool(zero.offload_params),
            device=torch.device(recorder.traced_device),
        )
        if divides_while_loading(recipe):
            divide_base(built, parts, recorder)
        else:
            _register_whole(recipe, recorder, built)
        make = partial(_make_stage3, recipe, recorder, built, parts)
        save = partial(save_zero3, recipe, recorder, model, parts) if zero.gathers_on_save else None
    else:
        _register_whole(recipe, recorder, built)
        make = partial(_make_stage12, recipe, recorder, built, rank)
    return RankModel(
        call=model,
        facts=built.facts,
        without_sync=_no_optimizer_yet,
        save=save,
        with_optimizer=partial(_take_optimizer, recipe, recording, built, make),
    )


def _note_host(recipe: Recipe, recorder: Recorder, built: BuiltModel) -> None:
    """Adds a note about the checkpoint in host memory before it is copied to the GPU. Weights of bitsandbytes are
    copied one by one."""
    if recipe.quantisation.method in ("bnb_4bit", "bnb_8bit"):
        return
    itemsize = getattr(torch, recipe.precision.load_dtype).itemsize
    nbytes = sum(fact.logical_elements for fact in built.facts.tensors if fact.kind == "parameter") * itemsize
    if divides_while_loading(recipe):
        how = "each rank reads the whole checkpoint on the host to load the parts"
    else:
        how = "each rank has the whole model on the host before it moves it to the GPU"
    text = f"{how}: up to {format_bytes(nbytes)} a rank; mapped files are shared by the ranks of a machine"
    recorder.notes.append(Note(kind="ruled", key="host.loading", text=text, bytes=nbytes))


def divides_while_loading(recipe: Recipe) -> bool:
    """Whether `zero.Init` shards each module when it is made. It does, unless bitsandbytes or another method packs the
    weights (transformers 5.20 `modeling_utils.py` `get_init_context`)."""
    return recipe.parallel.zero.stage == 3 and recipe.quantisation.method == "none"


def _register_whole(recipe: Recipe, recorder: Recorder, built: BuiltModel) -> None:
    tensors = _tensors(built)
    for fact in built.facts.tensors:
        recorder.register(tensors[fact.name], role=fact.role, module=fact.module, device=fact.device)
    del tensors
    dtype = getattr(torch, recipe.precision.load_dtype)
    cast_model(built.module, dtype, buffers=recipe.parallel.zero.casts_buffers)


def _no_optimizer_yet() -> AbstractContextManager[Any]:
    raise AssertionError("the engine has no optimizer yet")


def _take_optimizer(
    recipe: Recipe,
    recording: RecordingMode,
    built: BuiltModel,
    make: MakeEngine,
    rank_model: RankModel,
    optimizer: Optimizer,
) -> RankModel:
    """`_configure_zero_optimizer`."""
    recorder = recording.recorder
    with recording, recorder.watch(built.module), torch.no_grad():
        stepping = Stepping(optimizer, recipe.parallel.zero, recorder, built.module)
        engine, tensors, shards = make(stepping)
    facts = describe_rank(built.facts, tensors, shards)
    if recipe.parallel.zero.offload_params:
        facts = with_parameters_on_host(facts)
    return replace(
        rank_model,
        facts=facts,
        shards=tuple(shards),
        engine=engine,
        without_sync=engine.without_boundary,
    )


def _make_stage12(
    recipe: Recipe, recorder: Recorder, built: BuiltModel, rank: int | None, stepping: Stepping
) -> tuple[Engine, dict[str, torch.Tensor], list[FlatShard]]:
    engine = Stage12(
        recipe,
        recorder,
        stepping,
        bucket_elements=resolve_sizes(recipe.parallel.zero, built.module).bucket,
        device=torch.device(recorder.traced_device),
        free_bytes=partial(_free_bytes, recipe, recorder),
        rank=rank,
    )
    names = _names(built.module)
    shards = [
        _shard(group.flat, {names[id(each)]: each.numel() for each in group.parameters}, is_part=False)
        for group in engine.groups
    ]
    return engine, _tensors(built), shards


def _make_stage3(
    recipe: Recipe, recorder: Recorder, built: BuiltModel, parts: Parts, stepping: Stepping
) -> tuple[Engine, dict[str, torch.Tensor], list[FlatShard]]:
    model = built.module
    divide_rest(built, parts)
    engine = Stage3(
        recipe,
        recorder,
        stepping,
        model,
        parts,
        sizes=resolve_sizes(recipe.parallel.zero, model),
        is_leaf=leaf_test(model),
        device=torch.device(recorder.traced_device),
    )
    if divides_while_loading(recipe) or recipe.parallel.zero.always_changes_linear:
        use_linear(parts)
    names = _names(model)
    held = {names[id(part.parameter)]: part for part in parts.by_id.values()}
    tensors = _tensors(built) | {name: part.tensor for name, part in held.items() if part.tensor is not None}
    return engine, tensors, [_shard(flat, _held_in(flat, held), is_part=True) for flat in engine.weights]


def _held_in(flat: torch.Tensor, held: Mapping[str, Part]) -> dict[str, int]:
    """The parameters whose part is in the buffer, and how many elements of it are there."""
    storage = flat.untyped_storage()._cdata
    return {
        name: part.elements
        for name, part in held.items()
        if part.tensor is not None and part.tensor.untyped_storage()._cdata == storage
    }


def _shard(flat: torch.Tensor, elements: dict[str, int], *, is_part: bool) -> FlatShard:
    is_adapter = all("lora_" in name for name in elements)
    return FlatShard("", "adapter" if is_adapter else "weight", flat, elements, is_part=is_part)


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}


def resolve_sizes(zero: Zero, model: nn.Module) -> Sizes:
    """The sizes; "auto" is replaced by a size from the hidden size H: H^2, 0.9 H^2 and 10 H (transformers
    `integrations/deepspeed.py` `trainer_config_finalize`)."""
    hidden = next(hidden_sizes(model), 0)

    def size(said: int, auto: int) -> int:
        return said if said >= 0 else auto

    return Sizes(
        bucket=size(zero.reduce_bucket_elements, hidden * hidden),
        prefetch=size(zero.prefetch_bucket_elements, int(0.9 * hidden * hidden)),
        persistence=size(zero.persistence_elements, 10 * hidden),
    )


def hidden_sizes(model: nn.Module) -> Iterator[int]:
    """Hidden sizes in the model's configuration; the one that counts is the first."""
    config: Any = unwrapped(model).config
    for holder in (config, getattr(config, "text_config", None)):
        size = getattr(holder, "hidden_size", None) or max(getattr(holder, "hidden_sizes", None) or (0,))
        if size:
            yield int(size)


def _free_bytes(recipe: Recipe, recorder: Recorder) -> int:
    """Free bytes of the card (`available_memory`); without a named card there is always enough."""
    if not recipe.gpu.memory_bytes:
        return 1 << 62
    return recipe.gpu.memory_bytes - recipe.gpu.outside_bytes - recorder.live_bytes()


def _tensors(built: BuiltModel) -> dict[str, torch.Tensor]:
    return local_tensors(built.module) | {state.name: state.tensor for state in built.state_tensors}
