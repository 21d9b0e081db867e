"""Refuses recipes that could treat layers differently. No torch here.

This module lists the fields that treat all layers in the same way. If any other field is set, layers are not folded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from axmem_trace.folding.repetition import CannotFold

_ANY = "*"
_ALIKE: Mapping[str, str] = {
    "name": _ANY,
    "model": (
        "base task type_of_model num_labels added_tokens resize_embeddings_to_32x shrink_embeddings mean_resizing "
        "fix_untrained_tokens experts_implementation freeze_multimodal embedding_names"
    ),
    "precision": (
        "load_dtype autocast autocast_dtype grad_scaler output_dtype upcast_before upcast_embeddings cast_back "
        "norm_dtype embedding_dtype fp32_norms fp32_norm_classes kbit_skips"
    ),
    "quantisation": (
        "method quant_type double_quant storage_dtype compute_dtype skip_modules int8_threshold int8_outliers "
        "kbit_preparation details double_quant_experts int8_experts_stay_unpacked"
    ),
    "placement": "automatic key",
    "adapter": (
        "kind rank alpha dropout target_modules target_linear target_parameters modules_to_save rank_pattern "
        "alpha_pattern trainable_token_indices dora rslora fan_in_fan_out ensure_weight_tying init dtype "
        "input_gradients loraplus relora_steps relora_prunes_at_random"
    ),
    "freezing": "unfrozen",
    "checkpointing": "enabled use_reentrant kwargs selective_sees_varlen",
    "attention": "kernel",
    "loss": _ANY,
    "objective": _ANY,
    "kernels": "liger lora tiled_mlp tiled_mlp_shards lora_gradients liger_loss",
    "optimizer": _ANY,
    "batch": _ANY,
    "lengths": _ANY,
    "logging_steps": _ANY,
    "evaluation": "enabled before_training rows row_tokens packed gathers_logits",
    "gpu": _ANY,
    "parallel": _ANY,
    "allocator": _ANY,
    "router": _ANY,
    "axolotl": _ANY,
    "reasons": _ANY,
    "notes": _ANY,
    "written": _ANY,
    "alternatives": _ANY,
}
"""Fields of each part of the recipe that treat all layers in the same way; `_ANY`: all fields of the part."""
_ENGINES = ("none", "ddp", "fsdp2")
"""Engines that do the same for each layer. DDP's buckets may end in the middle of a layer, so `parallel/ddp/folded.py`
makes the buckets of the whole model. FSDP1 is not in the list: its blocks wait for another stream until a certain
tick."""
_OBJECTIVES = ("supervised", "dpo", "ipo", "simpo", "orpo", "kto", "reward")
"""Methods whose passes go through all layers of one model. Rollouts generate token by token, and EBFT selects layers."""
_CAST_ADAPTERS = ("dpo", "ipo", "kto", "reward")
"""Methods in which the adapter weights of a quantised model are replaced after loading: the short model's frees of them
are not divided into layers, so a trace of it would be wasted."""
_NAMES_MODULES = (
    "precision.kbit_skips",
    "quantisation.skip_modules",
    "quantisation.details",
    "adapter.target_parameters",
    "adapter.modules_to_save",
    "adapter.rank_pattern",
    "adapter.alpha_pattern",
    "freezing.unfrozen",
    "optimizer.args",
    "optimizer.target_modules",
    "optimizer.extra",
)
"""Fields that contain names of modules. `adapter.target_modules` is checked with the model (`layer_folding.py`)."""
_NO_LAYER = re.compile(r"(?:[A-Za-z_]\w*|\*)(?:\.(?:[A-Za-z_]\w*|\*))*")
"""A dotted name that means the same in every layer: it contains no number, and no pattern except `*` for a number."""
_CHECKPOINT_LISTS = "quantization_config"
"""The key in the base model's `config.json` whose lists of modules that are not quantised may name layers."""


def refuse_recipe(recipe: Any) -> None:
    """Raises `CannotFold` if the recipe could treat layers differently; the message names the field."""
    if recipe.parallel.engine not in _ENGINES:
        raise CannotFold(f"parallel.engine {recipe.parallel.engine} may treat layers differently")
    if recipe.parallel.engine == "ddp" and recipe.parallel.ddp.finds_unused:
        raise CannotFold("DDP looks for unused parameters in the graph of the whole model")
    reference = recipe.objective.reference
    if recipe.objective.method not in _OBJECTIVES:
        raise CannotFold(f"objective.method {recipe.objective.method} may treat layers differently")
    if reference.resident_model or reference.unused_copy:
        raise CannotFold(f"objective.reference {reference.kind} is a second model")
    if recipe.objective.method != "supervised" and recipe.parallel.engine not in ("none", "ddp"):
        raise CannotFold(f"objective.method {recipe.objective.method} with {recipe.parallel.engine} was not compared")
    if recipe.objective.method in _CAST_ADAPTERS and recipe.quantisation.method in ("bnb_4bit", "bnb_8bit"):
        raise CannotFold(
            f"objective.method {recipe.objective.method} frees the quantised model's first adapter weights"
        )
    for group in fields(recipe):
        value, alike = getattr(recipe, group.name), _ALIKE.get(group.name, "").split()
        if alike == [_ANY]:
            continue
        if not is_dataclass(value):
            if value != _default(group):
                raise CannotFold(f"{group.name} may treat layers differently")
            continue
        for field in fields(value):
            if field.name not in alike and getattr(value, field.name) != _default(field):
                raise CannotFold(f"{group.name}.{field.name} may treat layers differently")
    for path in _NAMES_MODULES:
        part, name = path.split(".")
        for text in _texts(getattr(getattr(recipe, part), name)):
            if not names_no_layer(text):
                raise CannotFold(f"{path} may name layers: {text}")
    for text in _texts(recipe.model.base.config.get(_CHECKPOINT_LISTS)):
        if re.search(r"(^|\.)\d+(\.|$)|[\[\\*^$]", text):
            raise CannotFold(f"the base model's {_CHECKPOINT_LISTS} may name layers: {text}")
    kinds = ("none", "lora", "qlora")
    if recipe.adapter.kind not in kinds:
        raise CannotFold(f"an adapter of kind {recipe.adapter.kind} may treat layers differently")


def names_no_layer(text: str) -> bool:
    """True if a name, or another plain value as text, cannot select a single layer."""
    return bool(_NO_LAYER.fullmatch(text))


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _texts(value: Any) -> Iterator[str]:
    """The strings in nested lists and mappings, including keys. Numbers are skipped, because they name no module."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _texts(each)
