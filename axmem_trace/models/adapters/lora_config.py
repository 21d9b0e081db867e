"""From a recipe to peft's `LoraConfig`: each LoRA key of axolotl becomes an argument of peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from axmem_trace.models.adapters.initialise import init_keys
from axmem_trace.models.adapters.targets import expand_parametrised_targets, find_linear_names
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Adapter, Recipe


def make_lora_config(model: nn.Module, recipe: Recipe, notes: Notes) -> Any:
    """The `LoraConfig` that axolotl builds (`loaders/adapter.py` `_build_peft_lora_config`)."""
    from peft import LoraConfig

    adapter = recipe.adapter
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=_target_modules(model, recipe),
        target_parameters=expand_parametrised_targets(model, adapter.target_parameters),
        layers_to_transform=list(adapter.layers_to_transform) or None,
        layers_pattern=list(adapter.layers_pattern) or None,
        lora_dropout=adapter.dropout,
        fan_in_fan_out=adapter.fan_in_fan_out,
        modules_to_save=list(adapter.modules_to_save) or None,
        bias=adapter.bias,
        task_type=_task_type(model),
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        **_optional_keys(adapter),
        **init_keys(recipe, notes),
    )


def _target_modules(model: nn.Module, recipe: Recipe) -> list[str] | str | None:
    """The target modules. `lora_target_linear` adds linear layers to the named modules. None means peft's default for the
    model type, which only a saved adapter can have. Source: axolotl `_build_peft_lora_config`."""
    adapter = recipe.adapter
    if adapter.from_file and not (adapter.target_modules or adapter.target_linear or adapter.target_parameters):
        return None
    named = adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
    if not adapter.target_linear:
        return named
    listed = [named] if isinstance(named, str) else named
    return sorted({*listed, *find_linear_names(model, recipe.model.embedding_names[1])})


def _task_type(model: nn.Module) -> str:
    """The task, from the model class's name. Source: axolotl `loaders/adapter.py` `_get_peft_task_type`."""
    name = type(model).__name__
    if "SequenceClassification" in name:
        return "SEQ_CLS"
    if "TokenClassification" in name:
        return "TOKEN_CLS"
    return "CAUSAL_LM"


def _optional_keys(adapter: Adapter) -> dict[str, Any]:
    """Keys that axolotl only passes if they are set."""
    keys: dict[str, Any] = {}
    if adapter.layer_replication:
        keys["layer_replication"] = [list(pair) for pair in adapter.layer_replication]
    if adapter.trainable_token_indices:
        indices = adapter.trainable_token_indices
        is_mapping = hasattr(indices, "items")
        keys["trainable_token_indices"] = (
            {name: list(rows) for name, rows in indices.items()} if is_mapping else list(indices)  # type: ignore[union-attr]
        )
    if adapter.exclude_modules:
        names = adapter.exclude_modules
        keys["exclude_modules"] = names if isinstance(names, str) else list(names)
    if adapter.ensure_weight_tying:
        keys["ensure_weight_tying"] = True
    return keys
