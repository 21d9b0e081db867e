"""From a recipe to a model, in axolotl's order: class, skeleton, packing, vocabulary, casts, adapter, freezing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.models.adapters import add_adapter
from axmem_trace.models.built import BuiltModel, StateTensor
from axmem_trace.models.checkpointing import enable_checkpointing, refuse_unsupported_checkpointing
from axmem_trace.models.device_map import note_adapter_on_host, place_modules
from axmem_trace.models.dtypes import cast_as_axolotl
from axmem_trace.models.experts.llama4_experts import linearised_llama4_experts
from axmem_trace.models.experts.separate_experts import old_expert_names, route_by_linear_gates, unfuse_experts
from axmem_trace.models.freezing import freeze_parameters
from axmem_trace.models.layer_folding import Folding, NoFolding
from axmem_trace.models.quantisation import NoQuantizer, choose_quantizer, iterate_bnb_states, quantise_fused_experts
from axmem_trace.models.quantisation.fake_quantised import prepare_fake_quantisation
from axmem_trace.models.quantisation.float8 import convert_to_float8
from axmem_trace.models.quantisation.onebit import replace_linears
from axmem_trace.models.skeleton.model_class import find_model_class
from axmem_trace.models.skeleton.model_config import build_model_config
from axmem_trace.models.skeleton.skeleton import build_skeleton
from axmem_trace.models.untrained_tokens import fix_untrained_tokens
from axmem_trace.models.vocabulary import resize_vocabulary
from axmem_trace.models.walk import record_facts
from axmem_trace.models.warn import note_learned_positions, note_warnings
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe

WatchLoading = Callable[[Any], AbstractContextManager[None]]
"""Called with the model after its weights are loaded. The context is open while axolotl casts the model, adds the adapter
and freezes parameters."""


def build_model(
    recipe: Recipe, *, device: str = "meta", watch: WatchLoading = nullcontext, folding: Folding | None = None
) -> BuiltModel:
    """Build the model that axolotl would pass to the trainer.

    The order is that of axolotl `loaders/model.py` `ModelLoader.load` and `train.py` `setup_model_and_tokenizer`.

    Args:
        device: `meta` allocates nothing, for a model of any size. `cpu` builds a small, unquantised model with real tensors,
            with the same code.
        watch: see `WatchLoading`.
        folding: removes repeated layers from the model; None: all of them are built.

    Raises:
        ConfigError: the model can't be built by this recipe; the message says what to do.
    """
    _refuse_device(recipe, device)
    folding = folding or NoFolding()
    notes = Notes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = build_model_config(recipe, notes)
        model_class, config = find_model_class(recipe, config, notes)
        model, experts_quantised = _load(recipe, model_class, config, device, notes, folding)
        refuse_unsupported_checkpointing(model, recipe)
        with watch(model):
            model = change_loaded(model, recipe, notes, experts_quantised=experts_quantised)
        enable_checkpointing(model, recipe, notes)
        convert_to_float8(model, recipe, notes)
    model.train()
    states = _state_tensors(model)
    facts = record_facts(model, states, recipe)
    whole_facts = folding.complete(facts)
    note_warnings(recipe, whole_facts, notes)
    note_learned_positions(model, recipe, notes)
    return BuiltModel(
        module=model, config=model.config, facts=facts, whole_facts=whole_facts, state_tensors=states, notes=notes
    )


def change_loaded(model: Any, recipe: Recipe, notes: Notes, *, experts_quantised: bool) -> Any:
    """Makes axolotl's changes to the model that `from_pretrained` returned: vocabulary, casts, adapter, freezing.

    Source: axolotl `loaders/model.py` `_apply_post_model_load_setup`, `_load_adapters`, `utils/freeze.py`; `train.py`.
    """
    replace_linears(model, recipe, notes)
    resize_vocabulary(model, recipe, notes)
    model = cast_as_axolotl(model, recipe, experts_quantised=experts_quantised)
    prepare_fake_quantisation(model, recipe, notes)
    with old_expert_names(recipe):
        model = add_adapter(model, recipe, notes)
    route_by_linear_gates(model)
    freeze_parameters(model, recipe, notes)
    fix_untrained_tokens(model, recipe, notes)
    note_adapter_on_host(model, recipe, notes)
    return model


def _load(
    recipe: Recipe, model_class: Any, config: Any, device: str, notes: Notes, folding: Folding
) -> tuple[Any, bool]:
    """The model that `from_pretrained` returns, and whether fused experts were quantised while loading."""
    quantizer = choose_quantizer(recipe, config, notes)
    if device != "meta" and not isinstance(quantizer, NoQuantizer):
        raise ConfigError(problem="quantised weights are built on meta only", remedy="build on meta")
    dtype = quantizer.load_dtype(getattr(torch, recipe.precision.load_dtype))

    def replace_modules(model: Any) -> None:
        folding.shorten(model)
        unfuse_experts(model, recipe)
        quantizer.replace_modules(model, dtype)

    with linearised_llama4_experts(recipe):
        model = build_skeleton(model_class, config, recipe, dtype, device, notes, replace_modules, folding.make)
    quantizer.finish(model, dtype)
    make_canvas = partial(build_skeleton, model_class, config, recipe, dtype, "meta", Notes(), lambda model: None)
    place_modules(model, recipe, make_canvas, notes, folding.represents)
    return model, quantise_fused_experts(model, recipe, notes)


def _refuse_device(recipe: Recipe, device: str) -> None:
    if device not in ("meta", "cpu"):
        raise ValueError(f"device is {device!r}; models are built on 'meta' or 'cpu'")


def _state_tensors(model: torch.nn.Module) -> tuple[StateTensor, ...]:
    """Quantisation states of all modules, without duplicate storages."""
    found: dict[int, StateTensor] = {}
    for name, module in model.named_modules():
        for state in iterate_bnb_states(name, module):
            found.setdefault(state.tensor.untyped_storage()._cdata, state)
    return tuple(found.values())
