"""Add the adapter with peft's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.models.adapters.dtype import cast_adapter
from axmem_trace.models.adapters.initialise import initialised_here, refuse_initialisation
from axmem_trace.models.adapters.lora_config import make_lora_config
from axmem_trace.models.adapters.peft_changes import peft_as_axolotl_changes_it
from axmem_trace.models.adapters.targets import head_adapted_error, no_target_error, note_unmatched_targets
from axmem_trace.notes import Notes
from axmem_trace.recipe.recipe import Recipe


def add_adapter(model: Any, recipe: Recipe, notes: Notes) -> Any:
    """Wrap the model in peft's `PeftModel`; without an adapter, return it unchanged.

    Source: axolotl `loaders/adapter.py` `load_adapter` (which makes the embedding's output require grad), `load_lora`.

    Raises:
        ConfigError: peft refuses the configuration: no module matches, or options that exclude each other.
    """
    if recipe.adapter.kind == "none":
        return model
    if recipe.adapter.kind == "llama-adapter":
        raise _llama_adapter_error()
    refuse_initialisation(recipe)
    if recipe.adapter.input_gradients:
        model.enable_input_require_grads()
    names = [name for name, _ in model.named_modules()]
    lora_config = _checked(lambda: make_lora_config(model, recipe, notes), model, recipe)
    with peft_as_axolotl_changes_it(model, lora_config, notes), initialised_here(lora_config, recipe):
        peft_model = _checked(lambda: _inject(model, lora_config, recipe), model, recipe)
    note_unmatched_targets(names, peft_model, recipe, notes)
    cast_adapter(peft_model, recipe)
    if recipe.adapter.from_file:
        _load_file(peft_model, recipe)
    if recipe.objective.reference.kind == "adapter_copy":
        _add_frozen_copy(peft_model, lora_config)
    return peft_model


def _add_frozen_copy(peft_model: Any, lora_config: Any) -> None:
    """Adds the adapter `ref`: TRL copies an existing adapter and uses the copy as the reference (TRL 1.14.1
    `trainer/grpo_trainer.py` `__init__`). The copy keeps peft's dtype, fp32, even on a quantised base."""
    is_meta = next(peft_model.parameters()).is_meta
    with torch.device("meta" if is_meta else "cpu"):
        peft_model.add_adapter("ref", lora_config, low_cpu_mem_usage=is_meta)


def _load_file(peft_model: nn.Module, recipe: Recipe) -> None:
    """Allocates the saved tensors, which are on the GPU until all are copied into the adapter (peft `peft_model.py`
    `load_adapter`).

    If the file is not here, its tensors are assumed to have the adapter's sizes and dtypes.
    """
    adapter = [each for each in peft_model.parameters() if each.requires_grad]
    sizes = recipe.adapter.file_tensor_bytes or [each.nbytes for each in adapter]
    device = adapter[0].device if adapter else None
    _arrived = [torch.empty(nbytes, dtype=torch.uint8, device=device) for nbytes in sizes]


def _inject(model: nn.Module, lora_config: Any, recipe: Recipe) -> Any:
    from peft import get_peft_model

    is_meta = next(model.parameters()).is_meta
    with torch.device("meta" if is_meta else "cpu"):
        return get_peft_model(
            model,
            lora_config,
            autocast_adapter_dtype=recipe.adapter.dtype != "base",
            low_cpu_mem_usage=is_meta,
        )


def _checked(step: Any, model: nn.Module, recipe: Recipe) -> Any:
    """Run a step of peft, and turn its errors into `ConfigError`s."""
    adapter = recipe.adapter
    try:
        return step()
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
        key = "lora_target_modules"
        value: Any = adapter.target_modules
        if adapter.target_linear and not adapter.target_modules:
            key, value = "lora_target_linear", True
        if "modules_to_save cannot be applied" in str(error):
            raise head_adapted_error(model, key, value, error) from error
        if "target_parameters" in str(error) or "ParamWrapper" in str(error):
            key, value = "lora_target_parameters", adapter.target_parameters
        elif adapter.layer_replication and "replic" in str(error).lower():
            key, value = "peft_layer_replication", adapter.layer_replication
        elif "target" not in str(error).lower():
            raise _refused(error) from error
        raise no_target_error(model, key, list(value) if isinstance(value, tuple) else value, error) from error


def _refused(error: Exception) -> ConfigError:
    remedy = "change the LoRA keys that the message names"
    if "floating point" in str(error):
        remedy = "a layer that trains in full is 8-bit (one of lora_modules_to_save, or a token classifier's head): "
        remedy += "exclude it, or train without load_in_8bit"
    return ConfigError(
        problem="peft refuses this adapter",
        key="adapter",
        details=(f"{type(error).__name__}: {error}",),
        remedy=remedy,
    )


def _llama_adapter_error() -> ConfigError:
    return ConfigError(
        problem="axolotl 0.19 can't run llama-adapter: its loader reads `peft_adapter.layers` and `.len`, and its schema "
        "drops the key `peft_adapter`",
        key="adapter",
        value="llama-adapter",
        accepted="lora, qlora, or no adapter",
        remedy="use lora or qlora",
    )
