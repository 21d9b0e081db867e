"""Packed weights that axolotl loads through host memory: a plain linear layer whose weight is dequantised at each use.

bitsandbytes' own layer keeps the packed weight for its backward. Here autograd would keep an unpacked bf16 weight, so
axolotl checkpoints each layer separately. Its fused LoRA kernels read the weight themselves, and keep it until their
backward.

Source: axolotl 0.21 `utils/nf4.py` `BnbNF4Parametrization`, `dequantize_bnb_4bit`, `checkpoint_nf4_linear`,
`loaders/nf4.py`.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

_MARK = "_axmem_staged"


def stage_packed_weights(model: nn.Module) -> None:
    """Make each packed layer dequantise its whole weight in its forward, which is checkpointed."""
    for module in model.modules():
        if getattr(module._parameters.get("weight"), "quant_state", None) is not None:
            setattr(module, _MARK, True)
            module.forward = MethodType(_checkpointed_forward, module)


def is_staged(module: nn.Module) -> bool:
    """Whether the layer's weight is dequantised when it is read."""
    return bool(getattr(module, _MARK, False))


def read_weight(module: Any) -> torch.Tensor:
    """The whole weight in its compute dtype, [out, in]. With double quantisation two fp32 copies of the scales exist for a
    short time: the dequantised scales, and these plus the offset."""
    state = module.weight.quant_state
    scales = state.absmax
    if state.nested:
        plain = torch.empty(scales.numel(), dtype=torch.float32, device=scales.device)
        scales = plain + state.offset
        del plain
    whole = torch.empty(tuple(state.shape), dtype=state.dtype, device=module.weight.device)
    del scales
    return whole


def _forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        weight = read_weight(module)
    return F.linear(x, weight, module.bias)


def _checkpointed_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return _forward(module, x)
    output: torch.Tensor = checkpoint(_forward, module, x, use_reentrant=False)
    return output
