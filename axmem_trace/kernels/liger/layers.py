"""Liger's kernels inside a layer: RMSNorm, LayerNorm, gated activations, rotary embedding.

Source: liger-kernel 0.8.1, `liger_kernel/ops/{rms_norm,layer_norm,swiglu,geglu,rope,utils}.py`. Each class names the
function that it replaces. A Triton kernel allocates nothing; only its Python wrapper allocates, with torch. On a CPU the
outputs have the right shapes, but no meaningful values.
"""

from __future__ import annotations

from typing import Any

import torch


def contiguous(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`ensure_contiguous`: a copy of each tensor that is not contiguous."""
    return tuple(tensor.contiguous() for tensor in tensors)


class RmsNorm(torch.autograd.Function):
    """`LigerRMSNormFunction`: keeps x, the weight, and for each row the reciprocal of the norm in fp32.

    Backward writes dx into the memory of dy (`in_place`), or into a new tensor of zeros. It sums the weight's gradient from
    one fp32 row for each streaming multiprocessor.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, in_place: bool, num_sms: int) -> torch.Tensor:
        (x,) = contiguous(x)
        shape = x.shape
        x = x.view(-1, shape[-1])
        y = torch.empty_like(x)
        rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, rstd)
        ctx.in_place, ctx.num_sms = in_place, num_sms
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (dy,) = contiguous(*grad_outputs)
        _, weight, _ = ctx.saved_tensors
        shape = dy.shape
        dy = dy.view(-1, shape[-1])
        partial = torch.empty(ctx.num_sms, shape[-1], dtype=torch.float32, device=weight.device)
        dx = dy if ctx.in_place else torch.zeros_like(dy)
        return dx.view(shape), partial.sum(dim=0).to(weight.dtype), None, None


class LayerNorm(torch.autograd.Function):
    """`LigerLayerNormFunction`: keeps x, weight, bias, and for each row mean and 1 / (standard deviation) in x's dtype."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, num_sms: int) -> torch.Tensor:
        (x,) = contiguous(x)
        shape = x.shape
        x = x.view(-1, shape[-1])
        y = torch.empty_like(x)
        mean = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
        rstd = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.num_sms = num_sms
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (dy,) = contiguous(*grad_outputs)
        x, weight, bias, _, _ = ctx.saved_tensors
        partials = [torch.empty(ctx.num_sms, x.shape[-1], dtype=torch.float32, device=x.device) for _ in range(2)]
        dx = torch.empty_like(x).view(dy.shape)
        dweight = partials[0].sum(dim=0).to(weight.dtype)
        return dx, dweight, partials[1].sum(dim=0).to(bias.dtype), None


class GatedActivation(torch.autograd.Function):
    """`LigerSiLUMulFunction` and `LigerGELUMulFunction`: keeps gate and up. Backward overwrites them with their gradients.

    With `scaled` (Falcon-H1's down multiplier), output and incoming gradient are multiplied out of place.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, scaled: bool = False) -> torch.Tensor:
        gate, up = contiguous(gate, up)
        shape = gate.shape
        gate, up = gate.view(-1, shape[-1]), up.view(-1, shape[-1])
        out = torch.empty_like(gate).view(shape)
        if scaled:
            out = out * 1.0
        ctx.save_for_backward(gate, up)
        ctx.scaled = scaled
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad,) = contiguous(*grad_outputs)
        gate, up = ctx.saved_tensors
        if ctx.scaled:
            grad = grad * 1.0
        return gate.view(grad.shape), up.view(grad.shape), None


class GatedRmsNorm(torch.autograd.Function):
    """axolotl's `FusedRMSNormGatedFunction` (`kernels/rms_norm_gated.py`, 0.19): keeps x, gate, weight, and for each row the
    reciprocal of the norm in fp32. Its backward allocates dx and the gate's gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, num_sms: int) -> torch.Tensor:
        x, gate = contiguous(x, gate)
        shape = x.shape
        x, gate = x.view(-1, shape[-1]), gate.view(-1, shape[-1])
        y = torch.empty_like(x)
        rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, gate, weight, rstd)
        ctx.num_sms = num_sms
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (dy,) = contiguous(*grad_outputs)
        x, gate, weight, _ = ctx.saved_tensors
        dx, dgate = torch.empty_like(x), torch.empty_like(gate)
        partial = torch.empty(ctx.num_sms, x.shape[-1], dtype=torch.float32, device=x.device)
        return dx.view(dy.shape), dgate.view(dy.shape), partial.sum(dim=0).to(weight.dtype), None


class SquaredRelu(torch.autograd.Function):
    """`LigerReLUSquaredFunction`: keeps only its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        (x,) = contiguous(x)
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad,) = contiguous(*grad_outputs)
        return torch.empty_like(grad)


class Rope(torch.autograd.Function):
    """`LigerRopeFunction`: rotates q and k in place if [batch, tokens, heads, head_dim] is contiguous, otherwise in copies.
    Keeps cos and sin. Backward does the same with the gradients."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        q, k = contiguous(q.transpose(1, 2), k.transpose(1, 2))
        ctx.save_for_backward(*contiguous(cos, sin))
        return q.transpose(1, 2), k.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        dq, dk = contiguous(*(grad.transpose(1, 2) for grad in grad_outputs))
        return dq.transpose(1, 2), dk.transpose(1, 2), None, None


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces `liger_rotary_pos_emb(q, k, cos, sin, position_ids, unsqueeze_dim)`, which ignores the last two arguments.

    Shapes: q [batch, heads, tokens, head_dim], k [batch, kv_heads, tokens, head_dim], cos and sin [1 or batch, tokens,
    head_dim].
    """
    rotated: tuple[torch.Tensor, torch.Tensor] = Rope.apply(q, k, cos, sin)
    return rotated


def rotate_vision(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces `liger_rotary_pos_emb_vision`: as `rotate`, but in fp32 and for q and k [tokens, heads, head_dim]."""
    wide = [each.to(torch.float32).unsqueeze(0).transpose(1, 2) for each in (q, k)]
    turned = rotate(wide[0], wide[1], cos.to(torch.float32), sin.to(torch.float32))
    q_out, k_out = (each.transpose(1, 2).squeeze(0).to(q.dtype) for each in turned)
    return q_out, k_out


def rotate_multimodal(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mrope_section: Any, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces `liger_multimodal_rotary_pos_emb` (`ops/qwen2vl_mrope.py`): cos and sin have a first dimension of size 3."""
    return rotate(q, k, cos, sin)
