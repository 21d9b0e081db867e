"""What DeepSpeed does to a model before its optimizer: the parameters take the dtype of the run, or are divided.

Source: deepspeed 0.19.8 `runtime/engine.py` `_configure_distributed_model`, `_cast_module_mixed_precision` (0.18.9 casts
the buffers too), `runtime/zero/partition_parameters.py` `Init`, `GatheredParameters`; transformers 5.20
`integrations/deepspeed.py` `_load_state_dict_into_zero3_model`.
"""

from __future__ import annotations

import torch
from torch import nn

from axmem_trace.models.built import BuiltModel
from axmem_trace.parallel.rank_facts import local_tensors
from axmem_trace.parallel.units import plain_name
from axmem_trace.parallel.zero.parts import Parts
from axmem_trace.tracing.recorder import Recorder

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def cast_model(model: nn.Module, dtype: torch.dtype, *, buffers: bool) -> None:
    """Every floating parameter in `dtype`, one after the other. Packed weights stay as they are."""
    if dtype == torch.float32:
        return
    tensors = (*model.parameters(), *model.buffers()) if buffers else tuple(model.parameters())
    for tensor in tensors:
        if tensor.dtype in _CASTABLE and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def divide_base(built: BuiltModel, parts: Parts, recorder: Recorder) -> None:
    """`zero.Init`: a module's parameters are made whole on the GPU and divided; then each module is gathered once more
    to receive the checkpoint's weights. Adapters, which come later, are whole."""
    model = built.module
    facts = {fact.name: fact for fact in built.facts.tensors}
    for name, module in model.named_modules():
        own = [
            (plain_name(f"{name}.{key}".lstrip(".")), each)
            for key, each in module._parameters.items()
            if each is not None
        ]
        base = [(full, each) for full, each in own if full in facts and facts[full].role == "weight"]
        new = [(full, each) for full, each in base if parts.of(each) is None]
        for full, parameter in new:
            recorder.register(parameter, role="workspace", module=facts[full].module)
        for full, parameter in new:
            parts.divide(parameter, module=facts[full].module)
    for module in model.modules():
        own_parts = [part for each in module.parameters(recurse=False) if (part := parts.of(each)) is not None]
        parts.gather_now(own_parts)
        for part in own_parts:
            parts.release(part)
    tensors = local_tensors(model)
    for fact in built.facts.tensors:
        if fact.name in tensors:
            recorder.register(tensors[fact.name], role=fact.role, module=fact.module)


def divide_rest(built: BuiltModel, parts: Parts) -> None:
    """`_convert_to_zero_parameters`: every parameter that is whole still."""
    facts = {fact.name: fact for fact in built.facts.tensors}
    for name, parameter in built.module.named_parameters():
        if parts.of(parameter) is None:
            fact = facts[plain_name(name)]
            parts.divide(parameter, role=fact.role, module=fact.module)
