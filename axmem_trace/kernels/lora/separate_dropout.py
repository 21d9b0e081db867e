"""fms-acceleration's LoRA kernels: Unsloth's of 2024, with a dropout for each projection.

Source: fms-acceleration-foak 0.4 to 0.7.4 `fused_ops/unsloth_lora/bnb/fast_lora.py`, `gptq/fast_lora.py` (`LoRA_QKV`,
`LoRA_W`, `matmul_lora`), `models/utils.py` (`build_lora_fused_ops`).

axolotl's kernels have one dropout for all projections of an input, outside the autograd function, so autograd keeps its
mask too. Here the input of each projection is kept after its dropout. No mask is kept: backward compares that input with
zero.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.lora.projection import dequantise
from axmem_trace.kernels.lora.together import replace_together
from axmem_trace.kernels.site import Site
from axmem_trace.models.quantisation.packed_linear import PackedLinear
from axmem_trace.notes import Note


def install_separate_dropout(site: Site) -> None:
    """Replace the forwards of q, k, v and of o in each attention whose projections have adapters."""
    wanted = site.recipe.kernels.lora
    found = False
    for owner in site.model.modules():
        for kernel, names in (("qkv", ("q_proj", "k_proj", "v_proj")), ("o", ("o_proj",))):
            layers: list[Any] = [getattr(owner, name, None) for name in names]
            if kernel in wanted and all(hasattr(layer, "lora_A") for layer in layers):
                replace_together(site, layers, partial(_run_group, layers))
                found = True
    if found:
        text = (
            "fms-acceleration's LoRA kernels for q, k, v and o: each keeps its input after its own dropout, and no mask"
        )
        site.note(Note(kind="ruled", key="lora_qkv_kernel", text=text))


def _run_group(layers: list[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    trained = [part for layer in layers for part in _adapter(layer)]
    outputs: tuple[torch.Tensor, ...] = SeparateDropout.apply(layers, x, *trained)
    return outputs


class SeparateDropout(torch.autograd.Function):
    """`LoRA_QKV` for three layers that share an input x [batch, tokens, in], `LoRA_W` for one.

    GPTQ's version dequantises all base weights first and holds them until it returns; that for bitsandbytes dequantises one
    at a time, and writes the gradient of q, k and v's input into the input.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, layers: list[Any], x: torch.Tensor, *trained: torch.Tensor) -> Any:
        flat = x.view(-1, x.shape[-1])
        packed = _is_packed(layers[0])
        weights = [_base_weight(layer) for layer in layers] if packed else []
        outputs, dropped = [], []
        for index, (layer, lora_a, lora_b) in enumerate(zip(layers, trained[::2], trained[1::2], strict=True)):
            weight = weights[index] if packed else _base_weight(layer)
            out = torch.matmul(flat, weight)
            del weight
            dropped.append(_dropout(layer)(flat))
            out += (dropped[-1] @ lora_a.t().to(x.dtype)) @ (_scaling(layer) * lora_b.t().to(x.dtype))
            if layer.base_layer.bias is not None:
                out += layer.base_layer.bias
            outputs.append(out.view(*x.shape[:-1], -1))
            del out
        ctx.layers, ctx.in_place = layers, not packed and len(layers) > 1
        ctx.save_for_backward(x, *trained, *dropped)
        return tuple(outputs)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        count = len(ctx.layers)
        x, *kept = ctx.saved_tensors
        trained, dropped = kept[: 2 * count], kept[2 * count :]
        flat = x.view(-1, x.shape[-1])
        grads = [grad.reshape(-1, grad.shape[-1]) for grad in grad_outputs]
        found: list[torch.Tensor] = []
        for layer, grad, into, lora_a, lora_b in zip(
            ctx.layers, grads, dropped, trained[::2], trained[1::2], strict=True
        ):
            grad_a, grad_b = into.t() @ (grad @ lora_b), (lora_a @ into.t()) @ grad
            grad_a *= _scaling(layer)
            grad_b *= _scaling(layer)
            found += [grad_a.t(), grad_b.t()]
        grad_x = None
        for layer, grad, into, lora_a, lora_b in zip(
            ctx.layers, grads, dropped, trained[::2], trained[1::2], strict=True
        ):
            weight = _base_weight(layer)
            if grad_x is None:
                grad_x = torch.matmul(grad, weight.t(), out=flat) if ctx.in_place else torch.matmul(grad, weight.t())
            else:
                grad_x += grad @ weight.t()
            del weight
            grad_x += (into != 0) * (grad @ lora_b.to(x.dtype) @ (_scaling(layer) * lora_a.to(x.dtype)))
        assert grad_x is not None
        return None, grad_x.view(x.shape), *found


def _adapter(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] of the active adapter."""
    name = layer.active_adapters[0]
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _dropout(layer: Any) -> nn.Module:
    module: nn.Module = layer.lora_dropout[layer.active_adapters[0]]
    return module


def _scaling(layer: Any) -> float:
    return float(layer.scaling[layer.active_adapters[0]])


def _is_packed(layer: Any) -> bool:
    return isinstance(layer.base_layer, PackedLinear)


def _base_weight(layer: Any) -> torch.Tensor:
    """The base weight [in, out], dequantised: `dequant248` for GPTQ, `fast_dequantize` for bitsandbytes."""
    base = layer.base_layer
    if isinstance(base, PackedLinear):
        return torch.empty((base.in_features, base.out_features), dtype=torch.float16, device=base.qweight.device)
    state = getattr(base.weight, "quant_state", None) or getattr(base, "quant_state", None)
    return dequantise(base.weight.t(), state)
