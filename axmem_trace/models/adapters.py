"""LoRA through peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.models.dtypes import embedding_names
from axmem_trace.notes import Note
from axmem_trace.recipe.types import Recipe


def find_linear_names(model: nn.Module, model_type: str) -> list[str]:
    names = set()
    for name, module in model.named_modules():
        cls = type(module).__name__
        if isinstance(module, nn.Linear) or ("Linear" in cls and cls != "LlamaLinearScalingRotaryEmbedding"):
            names.add(name.rpartition(".")[2])
    names.discard(embedding_names(model_type)[1])
    return sorted(names)


def add_adapter(model: Any, recipe: Recipe, notes: list[Note]) -> Any:
    adapter = recipe.adapter
    if adapter.kind == "none":
        return model
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    targets = list(adapter.target_modules) if not isinstance(adapter.target_modules, str) else adapter.target_modules
    if adapter.target_linear:
        targets = sorted(set(([targets] if isinstance(targets, str) else targets) + find_linear_names(model, recipe.model.base.model_type)))
    lora = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets,
        target_parameters=list(adapter.target_parameters), modules_to_save=list(adapter.modules_to_save) or None,
        bias="none", task_type="CAUSAL_LM", use_dora=adapter.dora, use_rslora=adapter.rslora,
    )
    is_meta = next(model.parameters()).is_meta
    with torch.device("meta" if is_meta else "cpu"):
        return get_peft_model(model, lora, autocast_adapter_dtype=adapter.dtype == "autocast", low_cpu_mem_usage=is_meta)
