"""What DeepSpeed does to a model before the optimizer is made: it casts the parameters to the dtype of the run, or
shards them.

Source: deepspeed 0.19.8 `runtime/engine.py` `_configure_distributed_model`, `_cast_module_mixed_precision` (0.18.9 casts
the buffers too), `runtime/zero/partition_parameters.py` `Init`, `GatheredParameters`; transformers 5.20
`integrations/deepspeed.py` `_load_state_dict_into_zero3_model`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from axmem_trace.ledger import Role
from axmem_trace.models.built import BuiltModel
from axmem_trace.parallel.rank_facts import local_tensors
from axmem_trace.parallel.wrapped_names import plain_name
from axmem_trace.parallel.zero.parts import Parts
from axmem_trace.tracing.recorder import Recorder

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def cast_model(model: nn.Module, dtype: torch.dtype, *, buffers: bool) -> None:
    """Casts every floating-point parameter to `dtype`, one after the other. Packed weights stay as they are."""
    if dtype == torch.float32:
        return
    tensors = (*model.parameters(), *model.buffers()) if buffers else tuple(model.parameters())
    for tensor in tensors:
        if tensor.dtype in _CASTABLE and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def divide_base(built: BuiltModel, parts: Parts, recorder: Recorder) -> None:
    """`zero.Init`: a module's parameters are allocated in full on the GPU and then sharded. Later, each module is
    gathered again to load the checkpoint's weights. Adapters are added after that, and are whole."""
    model = built.module
    modules = {fact.name: fact.module for fact in built.facts.tensors if fact.role == "weight"}
    divide_made(model, modules, parts, recorder)
    tensors = local_tensors(model)
    for fact in built.facts.tensors:
        if fact.name in tensors:
            recorder.register(tensors[fact.name], role=fact.role, module=fact.module)


def divide_made(
    model: nn.Module,
    names: Mapping[str, str],
    parts: Parts,
    recorder: Recorder,
    *,
    role: Role = "weight",
    dtype: torch.dtype | None = None,
) -> None:
    """Each module's parameters are allocated, sharded, and gathered again for the checkpoint's weights.

    Args:
        names: the parameters, each with the name of its module in the ledger.
        role: the role of the shards in the ledger.
        dtype: the dtype to which `zero.Init` casts; None: no cast.
    """
    for prefix, module in model.named_modules():
        own = [
            (plain_name(f"{prefix}.{key}".lstrip(".")), each)
            for key, each in module._parameters.items()
            if each is not None
        ]
        new = [(name, each) for name, each in own if name in names and parts.of(each) is None]
        for name, parameter in new:
            recorder.register(parameter, role="workspace", module=names[name])
            if dtype is not None and parameter.dtype in _CASTABLE and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
        for name, parameter in new:
            parts.divide(parameter, role=role, module=names[name])
    for module in model.modules():
        own_parts = [part for each in module.parameters(recurse=False) if (part := parts.of(each)) is not None]
        parts.gather_now(own_parts)
        for part in own_parts:
            parts.release(part)


def divide_rest(built: BuiltModel, parts: Parts) -> None:
    """`_convert_to_zero_parameters`: shards every parameter that is still whole."""
    facts = {fact.name: fact for fact in built.facts.tensors}
    for name, parameter in built.module.named_parameters():
        if parts.of(parameter) is None:
            fact = facts[plain_name(name)]
            parts.divide(parameter, role=fact.role, module=fact.module)
