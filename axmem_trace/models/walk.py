"""Lists parameters, buffers and quantisation states of a model, without duplicate storages."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from axmem_trace.model_facts import ModelFacts, ModuleFact, TensorFact, WeightRole
from axmem_trace.models.built import StateTensor, unwrapped
from axmem_trace.models.device_map import is_on_host
from axmem_trace.recipe.recipe import Recipe

_SCALE_SUFFIXES = ("_scale_inv", "activation_scale")
"""transformers' names for fp8 scales (`integrations/finegrained_fp8.py`)."""


def record_facts(model: nn.Module, state_tensors: tuple[StateTensor, ...], recipe: Recipe) -> ModelFacts:
    """Facts about a built model. A storage with several names (tied weights) is counted under the first name."""
    seen: set[int] = set()
    tensors: list[TensorFact] = []
    modules: list[ModuleFact] = []
    adapter_modules = _adapter_module_names(model)
    for module_name, module in model.named_modules():
        modules.append(ModuleFact(name=module_name, class_name=type(module).__name__))
        role: WeightRole = "adapter" if module_name in adapter_modules else "weight"
        for name, parameter in module._parameters.items():
            if parameter is not None and _is_new(parameter, seen):
                is_scale = name.endswith(_SCALE_SUFFIXES)
                logical = 0 if is_scale else _logical_elements(module, name, parameter)
                tensors.append(
                    _fact(module_name, name, "buffer" if is_scale else "parameter", role, parameter, logical)
                )
        for name, buffer in module._buffers.items():
            if buffer is not None and _is_new(buffer, seen):
                tensors.append(_fact(module_name, name, "buffer", role, buffer, _packed_elements(module, name)))
    for state in state_tensors:
        if _is_new(state.tensor, seen):
            own_name = state.name.removeprefix(f"{state.module}.")
            tensors.append(_fact(state.module, own_name, "buffer", "weight", state.tensor, 0))
    return ModelFacts(
        name=recipe.model.base.name,
        model_type=recipe.model.base.model_type,
        class_name=_class_name(model),
        config_source=recipe.model.base.source,
        tensors=tuple(tensors),
        modules=tuple(modules),
    )


def _is_new(tensor: torch.Tensor, seen: set[int]) -> bool:
    key = tensor.untyped_storage()._cdata
    if key in seen:
        return False
    seen.add(key)
    return True


def _fact(
    module: str,
    name: str,
    kind: Literal["parameter", "buffer"],
    role: WeightRole,
    tensor: torch.Tensor,
    logical_elements: int,
) -> TensorFact:
    return TensorFact(
        name=f"{module}.{name}" if module else name,
        module=module,
        kind=kind,
        role=role,
        dtype=str(tensor.dtype).removeprefix("torch."),
        trainable=tensor.requires_grad,
        elements=tensor.numel(),
        logical_elements=logical_elements,
        nbytes=tensor.untyped_storage().nbytes(),
        device="cpu" if is_on_host(tensor) else "gpu",
    )


def _logical_elements(module: nn.Module, name: str, parameter: torch.Tensor) -> int:
    """The number of weights that a stored parameter represents. For a packed 4-bit weight it is in the quantisation state.

    The state is an attribute of the parameter (`Params4bit`) or of the parametrisation of a fused expert weight.
    """
    if hasattr(module, "packed_elements"):
        return _packed_elements(module, name)
    state = getattr(parameter, "quant_state", None)
    if state is None and isinstance(module, ParametrizationList):
        state = getattr(module[0], "quant_state", None)
    if state is not None and state.shape is not None:
        return int(torch.Size(state.shape).numel())
    return parameter.numel()


def _packed_elements(module: nn.Module, name: str) -> int:
    """The number of weights that a packed tensor (GPTQ's `qweight`) represents; 0 for plain tensors."""
    return int(getattr(module, "packed_elements", {}).get(name, 0))


def _adapter_module_names(model: nn.Module) -> set[str]:
    """Modules whose tensors belong to the adapter: peft's own layers, without the base layer inside them.

    Source: peft `tuners_utils.py` `BaseTunerLayer.adapter_layer_names`, `other_param_names`; `utils/other.py`
    `ModulesToSaveWrapper.modules_to_save`.
    """
    if not hasattr(model, "peft_config"):
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    names: set[str] = set()
    for module_name, module in model.named_modules():
        parts: list[str] = []
        if isinstance(module, BaseTunerLayer):
            parts = [*module.adapter_layer_names, *module.other_param_names]
        elif isinstance(module, ModulesToSaveWrapper):
            parts = ["modules_to_save"]
        for part in parts:
            child = getattr(module, part, None)
            if isinstance(child, nn.Module):
                prefix = f"{module_name}.{part}"
                names.update(f"{prefix}.{name}" if name else prefix for name, _ in child.named_modules())
    return names


def _class_name(model: Any) -> str:
    return type(unwrapped(model)).__name__
