"""A recipe's model with real tensors. It is built on meta and copied to the card like in transformers'
`from_pretrained`, with random weights instead of those of a checkpoint.

Used by `gpu_run.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from axmem_trace.models.build import change_loaded
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.checkpointing import enable_checkpointing, refuse_unsupported_checkpointing
from axmem_trace.models.quantisation import choose_quantizer
from axmem_trace.models.reference import as_trl_loads_it, plain_recipe
from axmem_trace.models.skeleton.model_class import find_model_class
from axmem_trace.models.skeleton.model_config import build_model_config
from axmem_trace.models.skeleton.skeleton import build_skeleton
from axmem_trace.models.walk import record_facts
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.loading import merged_names

INITIAL_DEVIATION = 0.02


def build_on_device(recipe: Recipe, device: str, loaded: Callable[[], None] = lambda: None) -> BuiltModel:
    """`axmem_trace.models.build_model`, in the same order, with real tensors on `device`; quantised if requested.

    Args:
        loaded: called when the weights are loaded and axolotl has not changed them yet.
    """
    notes = Notes()
    config = build_model_config(recipe, notes)
    model_class, config = find_model_class(recipe, config, notes)
    quantizer = choose_quantizer(recipe, config, notes)
    dtype = quantizer.load_dtype(getattr(torch, recipe.precision.load_dtype))
    model = build_skeleton(
        model_class, config, recipe, dtype, "meta", notes, lambda model: quantizer.replace_modules(model, dtype)
    )
    refuse_unsupported_checkpointing(model, recipe)
    hf_quantizer = getattr(quantizer, "hf_quantizer", None)
    warm_up(model, device, hf_quantizer)
    materialise(model, dtype, device)
    if hf_quantizer is not None:
        hf_quantizer.postprocess_model(model)
    loaded()
    model = change_loaded(model, recipe, notes, experts_quantised=False).to(device)
    enable_checkpointing(model, recipe, notes)
    model.train()
    facts = record_facts(model, (), recipe)
    reference = _build_reference(recipe, device)
    return BuiltModel(
        module=model, config=model.config, facts=facts, whole_facts=facts, notes=notes, reference=reference
    )


def _build_reference(recipe: Recipe, device: str) -> nn.Module | None:
    """The second model, which stays on the card, from the recipes of `axmem_trace.models.reference.build_reference`."""
    asked = recipe.objective.reference
    if not asked.resident_model:
        return None
    plain = plain_recipe(recipe)
    loaded = as_trl_loads_it(plain) if asked.dtype == "float32" else plain
    return build_on_device(loaded, device).module.requires_grad_(False)


def warm_up(model: nn.Module, device: str, hf_quantizer: Any) -> None:
    """transformers' own `caching_allocator_warmup`: one block as large as the model, freed immediately."""
    from transformers import modeling_utils

    if torch.device(device).type == "cuda":
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        modeling_utils.caching_allocator_warmup(
            model, dict.fromkeys(names, torch.device(device, torch.cuda.current_device())), hf_quantizer
        )


@torch.no_grad()
def materialise(model: Any, dtype: torch.dtype, device: str) -> None:
    """Makes tensors with random values on `device` for everything on meta, module by module as in loading. Tied weights
    stay tied.

    A weight that bitsandbytes packs is first allocated unpacked, one at a time, as when a checkpoint is read. While
    fused experts are made, the single experts of the checkpoint are allocated too. Buffers get the values of the
    model's own initialisation (for example rotary frequencies).
    """
    placed: dict[int, nn.Parameter] = {}
    is_merged = merged_names(model)
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not (parameter.is_meta or id(parameter) in placed):
                continue
            if id(parameter) not in placed:
                merged = is_merged(f"{prefix}.{name}" if prefix else name)
                parts = torch.empty(parameter.shape if merged else 0, dtype=parameter.dtype, device=device)
                placed[id(parameter)] = _make_parameter(module, parameter, dtype, device)
                del parts
            module._parameters[name] = placed[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device=device)
    _initialise_buffers(model)


def _make_parameter(module: Any, parameter: nn.Parameter, dtype: torch.dtype, device: str) -> nn.Parameter:
    """The same parameter as a real tensor, made as in transformers `integrations/bitsandbytes.py` `Bnb4bitQuantize`,
    `Bnb8bitQuantize`."""
    kind = type(parameter).__name__
    if kind not in ("Params4bit", "Int8Params"):
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        return nn.Parameter(_fill(values), requires_grad=parameter.requires_grad)
    values = _fill(torch.empty((module.out_features, module.in_features), dtype=dtype, device=device))
    settings = {key: value for key, value in parameter.__dict__.items() if not key.startswith("_")}
    if kind == "Int8Params":  # only the copy from the host to the card quantises it
        settings = {"has_fp16_weights": settings.get("has_fp16_weights", False)}
        return type(parameter)(values.to("cpu"), requires_grad=False, **settings).to(device)
    settings = {key: value for key, value in settings.items() if key not in ("quant_state", "bnb_quantized")}
    return type(parameter)(values, **{**settings, "requires_grad": False}).to(device)


def _fill(values: torch.Tensor) -> torch.Tensor:
    """Fills matrices with random values, and vectors with ones, because norms scale by them."""
    if not values.is_floating_point():
        return values.zero_()
    return values.normal_(std=INITIAL_DEVIATION) if values.dim() > 1 else values.fill_(1)


def _initialise_buffers(model: Any) -> None:
    """Calls `PreTrainedModel.initialize_weights` with every parameter marked as loaded, as after loading."""
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = next(module.buffers(), None) is None
    if hasattr(model, "initialize_weights"):
        model.initialize_weights()
