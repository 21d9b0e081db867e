"""Recipe to model, in axolotl's order: config, class, skeleton, quantise, resize, cast, prepare, adapt, freeze."""

from __future__ import annotations

import torch

from axmem_trace.models.adapters import add_adapter
from axmem_trace.models.bitsandbytes import iterate_bnb_states, make_bnb_quantizer, pack_bnb_weights
from axmem_trace.models.built import BuiltModel, StateTensor
from axmem_trace.models.dtypes import cast_as_axolotl
from axmem_trace.models.freezing import freeze_parameters
from axmem_trace.models.model_class import find_model_class
from axmem_trace.models.model_config import build_model_config
from axmem_trace.models.skeleton import build_skeleton
from axmem_trace.models.walk import record_facts
from axmem_trace.notes import Note
from axmem_trace.recipe.types import Recipe


def build_model(recipe: Recipe, *, device: str = "meta") -> BuiltModel:
    notes: list[Note] = []
    config = build_model_config(recipe, notes)
    model_class, config = find_model_class(recipe, config, notes)
    dtype = getattr(torch, recipe.precision.load_dtype)
    quantizer = None
    if recipe.quantisation.method in ("bnb_4bit", "bnb_8bit"):
        quantizer = make_bnb_quantizer(recipe.quantisation)
    replace = (lambda model: quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": 0})) if quantizer else None
    model = build_skeleton(model_class, config, recipe, device, notes, replace)
    if quantizer:
        pack_bnb_weights(model, dtype)
        quantizer.postprocess_model(model)
    model = cast_as_axolotl(model, recipe)
    model = add_adapter(model, recipe, notes)
    freeze_parameters(model, recipe, notes)
    if recipe.checkpointing.enabled:
        model.gradient_checkpointing_enable({"use_reentrant": recipe.checkpointing.use_reentrant, **recipe.checkpointing.kwargs})
    model.train()
    states = []
    for name, module in model.named_modules():
        states.extend(iterate_bnb_states(name, module))
    return BuiltModel(module=model, config=config, facts=record_facts(model, tuple(states), recipe), state_tensors=tuple(states), notes=notes)
