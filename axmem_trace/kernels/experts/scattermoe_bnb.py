"""ScatterMoE over experts that bitsandbytes packed (`quantize_moe_experts`): only experts with tokens are unpacked.

Source: axolotl 0.19, `integrations/kernels/libs/scattermoe_lora/`: `experts.py` (the `moe_bnb_fast` path, which is the
default), `selective_dequant.py` (`get_active_experts`, `remap_expert_indices`, `selective_expert_weights`,
`selective_lora_weights`), `selective_dequant_kernel.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.experts.scattered import Routed
from axmem_trace.kernels.experts.scattermoe_lora import Adapter


def select_active(
    module: Any, routed: Routed, adapters: dict[str, Adapter]
) -> tuple[torch.Tensor, Routed, dict[str, Adapter]]:
    """The experts that get tokens (int64), and the routing and adapters with these experts renumbered."""
    num_experts, device = module.num_experts, routed.experts.device
    active = torch.unique(routed.experts)
    number = torch.empty(num_experts, dtype=torch.long, device=device)
    number[active] = torch.arange(len(active), device=device)
    routed = Routed(number[routed.experts], routed.places, routed.offsets[active])
    if len(adapters) == 2:
        adapters = {name: _select_rows(each, active, num_experts) for name, each in adapters.items()}
    return active, routed, adapters


def _select_rows(adapter: Adapter, active: torch.Tensor, num_experts: int) -> Adapter:
    rank = adapter.lora_a.size(0) // num_experts
    rows = (active.long()[:, None] * rank + torch.arange(rank, device=active.device)[None, :]).reshape(-1)
    return Adapter(adapter.lora_a[rows], adapter.lora_b[:, rows], adapter.scaling)


def dequantise_active(module: Any, name: str, active: torch.Tensor) -> torch.Tensor:
    """The weights [active, out, in] in the dtype before packing. Double quantisation also needs the fp32 `absmax` of all
    experts."""
    from bitsandbytes import functional

    holder = module.parametrizations[name]
    state = getattr(holder[0], "quant_state", None)
    if state is None or state.quant_type != "nf4" or holder.original.dtype != torch.uint8:
        return getattr(module, name)[active]
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2)
        absmax += state.offset
    shape = tuple(state.shape)[-2:] if len(state.shape) == 3 else _shape_of_expert(module, state)
    unpacked = torch.empty(len(active), shape[0] * shape[1], dtype=state.dtype, device=holder.original.device)
    return unpacked.reshape(len(active), *shape)


def _shape_of_expert(module: Any, state: Any) -> tuple[int, int]:
    """The shape of one expert's weight, from the module's sizes, if the weights were flattened before they were packed."""
    elements = int(state.shape[0]) // int(module.num_experts)
    width = int(getattr(module, "hidden_dim", 0) or module.intermediate_dim)
    return elements // width, width
