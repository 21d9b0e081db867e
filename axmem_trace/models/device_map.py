"""Modules that stay in host memory after loading, and how a run with such modules continues or fails.

Source: axolotl 0.19 `loaders/model.py` `_set_device_map_config` (an empty model and accelerate's
`infer_auto_device_map`, which may split every class); transformers 5.16 `quantizers/quantizer_bnb_{4,8}bit.py`
`validate_environment`; accelerate 1.13 `big_modeling.py` `dispatch_model`, `hooks.py` `AlignDevicesHook`, `accelerator.py`
`prepare_model`; peft 0.20 `tuners_utils.py` `_move_adapter_to_device_of_base_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.models.skeleton.quiet import errors_alone
from axmem_trace.notes import Note, Notes, RefusalNote
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.units import format_bytes

_MARK = "_axmem_on_host"
AUTOMATIC_SHARE = 0.9
"""The share of the free memory that `device_map: auto` fills on a single GPU (`get_balanced_memory`). For bitsandbytes it is
nine tenths of that (`adjust_max_memory`)."""


def is_on_host(parameter: torch.Tensor) -> bool:
    """True if the parameter is in host memory. It is copied to the GPU for each forward of its module."""
    return bool(getattr(parameter, _MARK, False))


def place_modules(
    model: nn.Module,
    recipe: Recipe,
    make_canvas: Callable[[], nn.Module],
    notes: Notes,
    represents: Callable[[str], int],
) -> None:
    """Mark the parameters that stay on the host because of the recipe's limits or device map. Buffers stay on the GPU.

    Raises:
        ConfigError: limits that accelerate can't read; a quantised model with modules on the host.
    """
    placement, quantised = recipe.placement, recipe.quantisation.method in ("bnb_4bit", "bnb_8bit")
    if placement.on_host_first and quantised:
        raise _refused(recipe, "accelerate refuses to train a quantised model that was loaded on the CPU")
    if placement.automatic:
        _note_too_large(model, recipe, notes, represents)
    blocks = _blocks_on_host(recipe, make_canvas) if placement.max_memory else placement.on_host
    parameters = _parameters_of(model, blocks)
    if not parameters:
        return
    if quantised:
        raise _refused(
            recipe, f"transformers refuses to quantise a model with modules on the CPU or the disk ({_short(blocks)})"
        )
    for parameter in parameters:
        setattr(parameter, _MARK, True)
    notes.append(_note_fate(recipe, blocks, sum(each.nbytes for each in parameters)))


def note_adapter_on_host(model: nn.Module, recipe: Recipe, notes: Notes) -> None:
    """Reports adapters of layers on the host. peft moves an adapter to its base layer's device. For a layer on the host that
    is the meta device, so the adapter has no memory."""
    if recipe.adapter.kind == "none" or not any(map(is_on_host, model.parameters())):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and any(map(is_on_host, module.get_base_layer().parameters()))
    ]
    if layers:
        text = (
            f"the run fails in its first backward: {len(layers)} layers with adapters are in host memory, and peft moves "
            "their adapters to the meta device (in the figures these adapters are on the GPU)"
        )
        remedy = "give the GPU more memory, or adapt only layers that are on it"
        notes.append(RefusalNote(key=recipe.placement.key, text=text, remedy=remedy))


def _blocks_on_host(recipe: Recipe, make_canvas: Callable[[], nn.Module]) -> tuple[str, ...]:
    from accelerate import infer_auto_device_map

    dtype = getattr(torch, recipe.precision.load_dtype)
    try:
        with errors_alone("accelerate.utils.modeling"):  # it warns that this machine has no such GPU
            found = infer_auto_device_map(make_canvas(), max_memory=dict(recipe.placement.max_memory), dtype=dtype)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            problem="accelerate can't read these limits",
            key=recipe.placement.key,
            value=dict(recipe.placement.max_memory),
            accepted="numbers of bytes, or sizes such as 20GiB",
            details=(str(error),),
            remedy="write each limit as a number with a unit",
        ) from error
    return tuple(name for name, device in found.items() if device in ("cpu", "disk"))


def _parameters_of(model: nn.Module, blocks: Iterable[str]) -> list[nn.Parameter]:
    found: dict[int, nn.Parameter] = {}
    for block in blocks:
        try:
            module = model.get_submodule(block)
        except AttributeError:
            continue
        found.update((id(each), each) for each in module.parameters())
    return list(found.values())


def _note_fate(recipe: Recipe, blocks: Iterable[str], nbytes: int) -> Note:
    text = (
        f"{_short(blocks)} stay in host memory ({format_bytes(nbytes)}): each is copied to the GPU for its forward, "
        "and the copy stays until autograd releases it"
    )
    if recipe.adapter.kind == "none":
        text += "; they are never trained, because the gradients belong to the copies"
    return Note(kind="warning", key=recipe.placement.key, text=text, bytes=nbytes)


def _note_too_large(model: nn.Module, recipe: Recipe, notes: Notes, represents: Callable[[str], int]) -> None:
    share = AUTOMATIC_SHARE * (AUTOMATIC_SHARE if recipe.quantisation.method in ("bnb_4bit", "bnb_8bit") else 1)
    tensors = (*model.named_parameters(), *model.named_buffers())
    nbytes = sum(each.nbytes * represents(name) for name, each in tensors)
    if recipe.gpu.is_exceeded(nbytes, share):
        text = (
            f"the weights ({format_bytes(nbytes)}) are more than {share:.0%} of the card's free memory: `device_map: "
            "auto` would leave modules on the CPU, and the run fails or does not train them. In the figures the "
            "whole model is on the GPU"
        )
        notes.append(Note(kind="warning", key="device_map", text=text, bytes=nbytes))


def _refused(recipe: Recipe, problem: str) -> ConfigError:
    return ConfigError(
        problem=f"the run fails: {problem}",
        key=recipe.placement.key,
        remedy="raise or remove the limit, so that the whole model is on the GPU",
    )


def _short(blocks: Iterable[str]) -> str:
    names = list(blocks)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
