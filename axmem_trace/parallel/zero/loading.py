"""What DeepSpeed does to a model before its optimizer: the parameters take the dtype of the run.

Source: deepspeed 0.19.8 `runtime/engine.py` `_configure_distributed_model`, `_cast_module_mixed_precision`; 0.18.9 casts
the buffers too (`module.bfloat16()`).
"""

from __future__ import annotations

import torch
from torch import nn

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def cast_model(model: nn.Module, dtype: torch.dtype, *, buffers: bool) -> None:
    """Every floating parameter in `dtype`, one after the other. Packed weights stay as they are."""
    if dtype == torch.float32:
        return
    if buffers:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
        return
    for parameter in model.parameters():
        if parameter.dtype in _CASTABLE and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
