"""RWKV-4's `wkv` kernel, which transformers loads if it finds a GPU and a compiler.

Source: transformers 5.16 `models/rwkv/modeling_rwkv.py` (`RwkvLinearAttention`).
"""

from __future__ import annotations

from typing import Any

import torch


class Wkv(torch.autograd.Function):
    """Keeps decay, first, key, value and output. With float16 it computes in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        time_decay: torch.Tensor,
        time_first: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        return_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.input_dtype = key.dtype
        time_decay = -torch.exp(time_decay.float().contiguous())
        if key.dtype == torch.float16:
            time_first, key, value = time_first.float(), key.float(), value.float()
        time_first, key, value = time_first.contiguous(), key.contiguous(), value.contiguous()
        out = torch.empty_like(key)
        state = key.new_empty((key.shape[0], key.shape[2], 3), dtype=torch.float32) if return_state else None
        ctx.save_for_backward(time_decay, time_first, key, value, out)
        ctx.set_materialize_grads(False)
        return out.to(ctx.input_dtype), state

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        time_decay, time_first, key, value, _ = ctx.saved_tensors
        is_bf16 = ctx.input_dtype == torch.bfloat16
        decay_grad = torch.empty_like(time_decay, dtype=torch.bfloat16 if is_bf16 else torch.float32)
        rest = [torch.empty_like(each) for each in (time_first, key, value)]
        grad_out = grad_outputs[0].float() if ctx.input_dtype == torch.float16 else grad_outputs[0]
        grad_out = grad_out.contiguous()
        return *(each.to(ctx.input_dtype) for each in (decay_grad, *rest)), None


def rwkv_linear_attention(
    time_decay: torch.Tensor,
    time_first: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: Any = None,
    return_state: bool = False,
) -> tuple[torch.Tensor, Any]:
    """Replaces the function of the same name in the modeling file, as it runs on a GPU."""
    out, final = Wkv.apply(time_decay, time_first, key, value, return_state or state is not None)
    return out, None if final is None else [each.squeeze(2) for each in final.chunk(3, dim=2)]
