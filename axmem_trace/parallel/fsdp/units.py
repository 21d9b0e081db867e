"""The units of FSDP: modules whose parameters are gathered and freed together.

Source: accelerate 1.15 `utils/fsdp_utils.py` `fsdp2_prepare_auto_wrap_policy`, `utils/dataclasses.py`
`set_auto_wrap_policy`, `utils/other.py` `get_module_children_bottom_up`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.models.built import unwrapped
from axmem_trace.parallel.wrapped_names import CHECKPOINT_PREFIX
from axmem_trace.recipe.parallel import Fsdp


def bottom_up(model: nn.Module) -> list[nn.Module]:
    """Every module inside `model`, children before their parents, in accelerate's order."""
    ordered: list[nn.Module] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        ordered.append(module)
        waiting.extend(module.children())
    return ordered[:0:-1]


def make_wrap_policy(model: nn.Module, fsdp: Fsdp) -> Callable[[nn.Module], bool]:
    """A function that returns whether a module becomes a separate unit. The rest of the model is the unit of the root.

    Raises:
        ConfigError: the model has no layer of a class that the configuration names.
    """
    if fsdp.wrap == "none":
        return lambda module: False
    if fsdp.wrap == "size":
        return lambda module: sum(each.numel() for each in module.parameters()) > fsdp.min_num_params
    names = fsdp.wrap_classes or own_layer_classes(model)
    classes = tuple(_find_class(model, name, fsdp) for name in names)
    return lambda module: bool(classes) and isinstance(getattr(module, CHECKPOINT_PREFIX, module), classes)


def own_layer_classes(model: nn.Module) -> tuple[str, ...]:
    """Class names of the layers that must not be split, as the model's class lists them (`_no_split_modules`)."""
    return tuple(getattr(unwrapped(model), "_no_split_modules", None) or ())


def _find_class(model: nn.Module, name: str, fsdp: Fsdp) -> type[Any]:
    for module in model.modules():
        if type(module).__name__ == name:
            return type(module)
    raise ConfigError(
        problem=f"the model has no layer of the class {name}: the run would stop when FSDP wraps it",
        key="fsdp_config.transformer_layer_cls_to_wrap" if fsdp.wrap_classes else "fsdp_config",
        value=name,
        remedy=f"its own layers are {', '.join(own_layer_classes(model)) or 'unknown'}",
    )
