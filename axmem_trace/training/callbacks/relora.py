"""ReLoRA's restart: every `jagged_restart_steps` the adapter is merged into the base weights and initialised again, and
most values of its optimizer states are set to zero.

Source: axolotl 0.19 `monkeypatch/relora.py` (`ReLoRACallback.on_step_begin`, `merge_and_save`, `update_weights`,
`reset_optimizer`). It runs when a step begins: weights, adapter and optimizer states exist, gradients do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.optimizers.traced import TracedOptimizer

_STATE_KEYS = ("exp_avg", "exp_avg_sq", "state1", "state2")


@torch.no_grad()
def restart_relora(model: nn.Module, optimizer: TracedOptimizer, recipe: Recipe, recorder: Recorder) -> None:
    """One restart."""
    layers = list(_lora_layers(model))
    if recipe.quantisation.method in ("bnb_4bit", "bnb_8bit"):
        for name, layer in layers:
            _merge_on_checkpoint(name, layer, recipe, recorder)
    else:
        _merge_in_place(layers)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            _prune(optimizer, parameter, at_random=recipe.adapter.relora_prunes_at_random)


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora.layer import LoraLayer

    for name, module in model.base_model.model.named_modules():
        if "lora" not in name and isinstance(module, LoraLayer):
            yield name, module


def _merge_in_place(layers: list[tuple[str, Any]]) -> None:
    """Computes the product of B and A, and a scaled copy of it. During this, a variable still refers to the product of
    the previous layer."""
    for _, layer in layers:
        update = layer.get_delta_weight(_adapter(layer)).detach()
        layer.weight.data += update


def _merge_on_checkpoint(name: str, layer: Any, recipe: Recipe, recorder: Recorder) -> None:
    """The original weight is read from the checkpoint, and the sum is copied to the host and back.

    A 4-bit weight is not packed again: bitsandbytes treats it as packed already (`Params4bit.to`).
    """
    on_cpu = recipe.adapter.relora_cpu_offload
    out_features, in_features = layer.out_features, layer.in_features
    with recorder.paused():
        new_weight = torch.empty(out_features, in_features, device="meta")
    if not on_cpu:
        delta = layer.lora_B[_adapter(layer)].weight @ layer.lora_A[_adapter(layer)].weight * 2.0
        new_weight = torch.empty_like(new_weight, dtype=getattr(torch, recipe.precision.load_dtype)) + delta
        del delta
        new_weight.half()
    if recipe.quantisation.method == "bnb_4bit":
        layer.weight.data = torch.empty(out_features, in_features, device="meta")
    else:
        arrived = torch.empty(out_features, in_features, dtype=torch.float16, device="meta")
        packed = torch.empty_like(arrived, dtype=torch.int8), torch.empty(out_features, device="meta")
        layer.weight.data = packed[0]
    recorder.register(layer.weight, role="weight", module=f"base_model.model.{name}.base_layer")


def _adapter(layer: Any) -> str:
    active = layer.active_adapter
    return str(active[0] if isinstance(active, list) else active)


def _prune(optimizer: TracedOptimizer, parameter: nn.Parameter, *, at_random: bool) -> None:
    for each in optimizer.optimizers:
        state = each.state.get(parameter, {})
        for key in _STATE_KEYS:
            if isinstance(state.get(key), torch.Tensor):
                _prune_state(state[key], at_random=at_random)


def _prune_state(state: torch.Tensor, *, at_random: bool) -> None:
    """`random_pruning_`, or `magnitude_pruning_`, whose quantile sorts (torch 2.13 Sorting.cpp `quantile_compute`)."""
    if at_random:
        mask = torch.rand(state.shape, dtype=torch.float32, device=state.device) > 0.5
    else:
        magnitude = torch.abs(state)
        threshold = torch.sort(magnitude.flatten().to(torch.float32)).values[0].to(state.dtype)
        mask = magnitude > threshold
    state.mul_(mask.to(state.dtype))
