"""The dtype of adapter weights.

peft creates them in fp32, casts them to their base layer's dtype, and casts half precision back to fp32 unless
`autocast_adapter_dtype=False`. It skips the first cast for meta tensors, so that is done here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.recipe.recipe import Recipe


def cast_adapter(peft_model: nn.Module, recipe: Recipe) -> None:
    """Cast the weights of peft's layers by the rule in the recipe.

    `autocast`: fp32, for a base in any half precision (peft `tuners_utils.py` `cast_adapter_dtype`). `base`: the
    base layer's floating dtype, `compute_dtype` for bitsandbytes 4-bit; fp32 over integer weights (`tuners_utils.py`
    `_move_adapter_to_device_of_base_layer`); fp8 becomes the load dtype (axolotl `loaders/adapter.py` `load_lora`).
    Otherwise the dtype that was given with `--assume adapter_dtype=...`.
    """
    rule = recipe.adapter.dtype
    if rule == "autocast":
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in peft_model.modules():
        if isinstance(layer, BaseTunerLayer):
            dtype = _base_dtype(layer, recipe) if rule == "base" else getattr(torch, rule)
            for name in (*layer.adapter_layer_names, *layer.other_param_names):
                _cast(getattr(layer, name, None), dtype)


def _base_dtype(layer: Any, recipe: Recipe) -> torch.dtype:
    base = layer.get_base_layer()
    if getattr(layer, "parameter_name", None):
        dtype = layer.get_param().dtype
    elif hasattr(base, "compute_dtype"):
        dtype = base.compute_dtype
    else:
        weight = getattr(base, "weight", None)
        weight = weight if weight is not None else getattr(base, "qweight", None)
        dtype = weight.dtype if weight is not None else torch.float32
    if not dtype.is_floating_point:
        return torch.float32
    return getattr(torch, recipe.precision.load_dtype) if dtype.itemsize < 2 else dtype


def _cast(container: Any, dtype: torch.dtype) -> None:
    if not isinstance(container, nn.Module):
        return
    for tensor in [*container.parameters(), *container.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
