"""LoRA on experts' fused weights with axolotl's expert kernels: the experts get the adapters, and peft does not merge them.

Source: axolotl 0.19, `integrations/kernels/libs/scattermoe_lora/experts_lora_fastpath.py` and
`libs/sonicmoe/experts_lora_fastpath.py` (`patch_paramwrapper_fastpath`). peft's own code still runs for a wrapper with more
than one active adapter, and for a wrapper around other modules than experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.experts.scattermoe_lora import by_expert
from axmem_trace.kernels.site import Site

MakeAdapter = Callable[[torch.Tensor, torch.Tensor, float, int], Any]


def in_ranks(lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, num_experts: int) -> Any:
    """A and B in peft's layout, which sonicmoe uses."""
    return lora_a, lora_b, scaling


ORDERS: dict[str, MakeAdapter] = {"scattermoe": by_expert, "sonicmoe": in_ranks}


def hand_adapters_over(site: Site, implementation: str) -> None:
    """Make peft's wrapper pass the adapters to experts that run as `implementation`, in the attribute `handed_adapters`."""
    from peft.tuners.lora.layer import ParamWrapper

    original, make = ParamWrapper.forward, ORDERS[implementation]

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        wrappers, base = _unwrap(self)
        runs = getattr(getattr(base, "config", None), "_experts_implementation", None) == implementation
        if not (runs and hasattr(base, "gate_up_proj") and all(_is_plain(each) for each in wrappers.values())):
            return original(self, x, *args, **kwargs)
        base.handed_adapters = {name: _cast(each, x.dtype, base.num_experts, make) for name, each in wrappers.items()}
        try:
            return base(x, *args, **kwargs)
        finally:
            base.handed_adapters = None

    site.replace_attribute(ParamWrapper, "forward", forward)


def _unwrap(wrapper: Any) -> tuple[dict[str, Any], Any]:
    """Parameter's name -> its wrapper; and the module inside the wrappers."""
    wrappers, base = {}, wrapper
    while hasattr(base, "base_layer") and hasattr(base, "lora_A"):
        wrappers[base.parameter_name] = base
        base = base.base_layer
    return wrappers, base


def _is_plain(wrapper: Any) -> bool:
    return not wrapper.disable_adapters and not wrapper.merged and len(wrapper.active_adapters) == 1


def _cast(wrapper: Any, dtype: torch.dtype, num_experts: int, make: MakeAdapter) -> Any:
    """Casts A and B to the tokens' dtype, and converts them to the layout of the kernel."""
    (name,) = wrapper.active_adapters
    lora_a, lora_b = wrapper.lora_A[name].weight.to(dtype), wrapper.lora_B[name].weight.to(dtype)
    return make(lora_a, lora_b, wrapper.scaling[name], num_experts)
