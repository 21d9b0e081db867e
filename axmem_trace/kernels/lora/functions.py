"""axolotl's fused LoRA projections: one autograd function for all projections of one input (QKV, O, in-projections).

Source: axolotl `kernels/lora.py`: `LoRA_QKV`, `LoRA_QK`, `LoRA_O`, `LoRA_FusedProj`. They keep the input (and its
copy after dropout), the adapter's matrices in the input's dtype and, with DoRA, the scaled sums. If a local variable
there keeps a tensor alive until the function returns, the code here does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from axmem_trace.kernels.lora.projection import (
    Frozen,
    Projection,
    adapter_output,
    dequantise,
    dora_scale,
    drop,
    project,
    read_projection,
)

TRAINED = 4
"""Tensors of a projection that autograd sees: A, B, the adapter's bias, DoRA's magnitude."""
KEPT = 6
"""Tensors of a projection that are kept: A and B after the cast, and the adapter's bias. DoRA adds magnitude, scale and
sum."""
Tensors = tuple[torch.Tensor | None, ...]
Order = Literal["qkv", "o", "one by one"]
"""The function whose order of allocations is followed.

`LoRA_QKV` and `LoRA_QK` compute all outputs before they keep anything, and the gradients of all adapters before the
input's. `LoRA_O` does not add to the gradient of an input after dropout. `LoRA_FusedProj` computes one projection after
the other. Its backward is treated like that of `LoRA_QKV`, which needs one more [tokens, rank] per projection."""


def run_projections(
    layers: list[Any], x: torch.Tensor, *, training: bool, order: Order, wide_gradients: bool = False
) -> tuple[Any, ...]:
    """The outputs of peft layers that share the input x [batch, tokens, in], in order."""
    projections = [read_projection(layer, wide_gradients=wide_gradients) for layer in layers]
    dropouts = [each for each in projections if each.dropout is not None]
    x_dropped = drop(dropouts[0], x, training) if dropouts else None
    tensors = [tensor for each in projections for tensor in each.trained]
    frozen = tuple(each.frozen for each in projections)
    outputs: tuple[Any, ...] = FusedProjections.apply(frozen, order, x, x_dropped, *tensors)
    return outputs


class FusedProjections(torch.autograd.Function):
    """`LoRA_QKV` for three, `LoRA_QK` for two, `LoRA_O` for one, `LoRA_FusedProj` for any number of projections."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(
        ctx: Any,
        frozen: tuple[Frozen, ...],
        order: Order,
        x: torch.Tensor,
        x_dropped: torch.Tensor | None,
        *tensors: torch.Tensor | None,
    ) -> Any:
        by_projection = split(tensors, TRAINED)
        made: list[Made] = []
        outputs, saved = [], []
        for fixed, trained in zip(frozen, by_projection, strict=True):
            made.append(project_forward(Projection.of(fixed, trained), x, x_dropped, sums_again=order == "qkv"))
            outputs.append(made[-1].output)
            if order != "qkv":  # variables of one iteration are freed when the next iteration assigns them
                saved += [*cast(trained, x.dtype), *made[-1].keep()]
                del made[:-1]
        if order == "qkv":
            kept = [each.keep() for each in made]
            saved = [
                each
                for trained, of_dora in zip(by_projection, kept, strict=True)
                for each in (*cast(trained, x.dtype), *of_dora)
            ]
        ctx.save_for_backward(x, x if x_dropped is None else x_dropped, *saved)
        ctx.frozen, ctx.base_first, ctx.has_dropout = frozen, order == "o", x_dropped is not None
        return tuple(outputs)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, x_lora, *saved = ctx.saved_tensors
        flat = x_lora.reshape(-1, x_lora.shape[-1])
        by_projection = split(saved, KEPT)
        scaled = [
            through_magnitude(grad.reshape(-1, grad.shape[-1]), kept)
            for grad, kept in zip(grad_outputs, by_projection, strict=True)
        ]
        found = [
            adapter_gradients(grad, flat, kept, fixed)
            for (grad, _), kept, fixed in zip(scaled, by_projection, ctx.frozen, strict=True)
        ]
        grad_x = None
        for (grad, _), fixed in zip(scaled, ctx.frozen, strict=True):
            grad_x = add_base_gradient(grad_x, grad, fixed)
        assert grad_x is not None
        grad_dropped = torch.zeros_like(flat) if ctx.has_dropout and not ctx.base_first else None
        for each, kept, fixed in zip(found, by_projection, ctx.frozen, strict=True):
            lora_a = kept[0]
            if each.inner is None or lora_a is None:
                continue
            if ctx.has_dropout and ctx.base_first:
                grad_dropped = each.inner @ lora_a * fixed.scaling
            else:
                into = grad_x if grad_dropped is None else grad_dropped
                into.addmm_(each.inner, lora_a.to(into.dtype), alpha=fixed.scaling)
        by_tensor = [
            each
            for (_, of_magnitude), adapter in zip(scaled, found, strict=True)
            for each in (*adapter.trained, of_magnitude)
        ]
        shaped = None if grad_dropped is None else grad_dropped.view(x_lora.shape)
        return None, None, grad_x.view(x.shape), shaped, *by_tensor


@dataclass(frozen=True, slots=True)
class Made:
    """One projection's forward.

    With DoRA it also has the magnitude, its scale, and the parts from base and adapter. Variables of the original function
    keep these alive until it returns.
    """

    output: torch.Tensor
    magnitude: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    base: torch.Tensor | None = None
    adapter: torch.Tensor | None = None
    combined: torch.Tensor | None = None

    def keep(self) -> Tensors:
        """The tensors that DoRA keeps: magnitude, scale and sum. If no variable keeps the sum, it is computed again."""
        if self.base is None or self.adapter is None:
            return None, None, None
        combined = self.base + self.adapter if self.combined is None else self.combined
        return self.magnitude, self.scale, combined


@dataclass(frozen=True, slots=True)
class AdapterGradients:
    """Gradients of A, B and the adapter's bias. `inner` is grad @ B, [tokens, rank]; the input's gradient also needs
    it."""

    inner: torch.Tensor | None
    trained: Tensors


def project_forward(
    projection: Projection, x: torch.Tensor, x_dropped: torch.Tensor | None, *, sums_again: bool
) -> Made:
    """One projection's output, [..., out], from x [..., in].

    Args:
        sums_again: with DoRA, the sum of base and adapter is computed for the output, and again to be kept (`LoRA_QKV`, and
            gate and up of `LoRA_MLP`).
    """
    if projection.magnitude is None:
        return Made(project(x, projection, x_dropped))
    base = project(x, projection, with_adapter=False)
    adapter = adapter_output(x if x_dropped is None else x_dropped, projection)
    scale = dora_scale(projection, x.dtype)
    combined = None if sums_again else base + adapter
    output = scale.unsqueeze(0) * (base + adapter if combined is None else combined)
    if projection.frozen.bias is not None:
        output = output + projection.frozen.bias
    return Made(output, projection.magnitude, scale, base, adapter, combined)


def through_magnitude(grad: torch.Tensor, kept: Tensors) -> tuple[torch.Tensor, torch.Tensor | None]:
    """With DoRA, the scaled gradient [tokens, out] and the magnitude's gradient. Otherwise the unchanged gradient."""
    magnitude, scale, combined = kept[3:]
    if magnitude is None or scale is None or combined is None:
        return grad, None
    combined = combined.reshape(-1, combined.shape[-1])
    grad_magnitude = (grad * combined).sum(dim=0) * scale / magnitude
    return grad * scale.unsqueeze(0), grad_magnitude


def adapter_gradients(grad: torch.Tensor, x: torch.Tensor, kept: Tensors, frozen: Frozen) -> AdapterGradients:
    """A's and B's gradients, computed transposed, from grad [tokens, out] and x [tokens, in]."""
    lora_a, lora_b, lora_bias = kept[:3]
    scaling = frozen.scaling
    grad_bias = None if lora_bias is None else scaling * grad.sum(dim=0)
    if lora_a is None or lora_b is None:
        return AdapterGradients(None, (None, None, grad_bias))
    inner = grad @ lora_b
    if frozen.wide_gradients and x.dtype != torch.float32:
        grad_a = _wide_product(x.t(), inner)
        grad_b = _wide_product(lora_a @ x.t(), grad)
        return AdapterGradients(inner, (grad_a.t(), grad_b.t(), grad_bias))
    grad_a, grad_b = torch.empty_like(lora_a.t()), torch.empty_like(lora_b.t())
    grad_a.addmm_(x.t(), inner.to(grad_a.dtype), alpha=scaling, beta=0)
    grad_b.addmm_((lora_a @ x.t()).to(grad_b.dtype), grad, alpha=scaling, beta=0)
    return AdapterGradients(inner, (grad_a.t(), grad_b.t(), grad_bias))


def _wide_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`torch.mm(left, right, out_dtype=torch.float32).mul_(scale)`: allocates only the product."""
    return torch.empty((left.shape[0], right.shape[1]), dtype=torch.float32, device=left.device)


def add_base_gradient(grad_x: torch.Tensor | None, grad: torch.Tensor, frozen: Frozen) -> torch.Tensor:
    """The input's gradient through the base weight, which is dequantised again. It is added to `grad_x`, or is a new
    tensor."""
    weight = dequantise(frozen.weight, frozen.quant_state)
    if weight.dtype != grad.dtype:
        weight = weight.to(grad.dtype)
    if grad_x is None:
        return torch.mm(grad, weight)
    return grad_x.addmm_(grad, weight)


def cast(trained: Tensors, dtype: torch.dtype) -> Tensors:
    """The tensors that are kept: A and B in the input's dtype, and the adapter's bias."""
    lora_a, lora_b, lora_bias, _ = trained
    return (None if lora_a is None else lora_a.to(dtype)), (None if lora_b is None else lora_b.to(dtype)), lora_bias


def split(tensors: Any, size: int) -> list[Tensors]:
    """Tuples of `size` tensors: one for each projection."""
    return [tuple(tensors[start : start + size]) for start in range(0, len(tensors), size)]
