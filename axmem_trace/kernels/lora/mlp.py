"""axolotl's fused LoRA MLP: gate, up, activation and down in one autograd function.

Source: axolotl 0.19 `kernels/lora.py` (`LoRA_MLP`, `apply_lora_mlp_swiglu`, `apply_lora_mlp_geglu`),
`kernels/swiglu.py` and `geglu.py`. The activation's backward overwrites the incoming gradient with the product. It
overwrites the kept gate and up with their gradients.
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.lora.functions import (
    KEPT,
    TRAINED,
    adapter_gradients,
    add_base_gradient,
    cast,
    project_forward,
    split,
    through_magnitude,
)
from axmem_trace.kernels.lora.projection import Frozen, Projection, drop, project, read_projection


def run_mlp(self: Any, x: torch.Tensor, *, wide_gradients: bool = False) -> torch.Tensor:
    """Replaces the MLP's forward: x [batch, tokens, hidden]. Gate and up share one dropout; down has none."""
    projections = [
        read_projection(layer, wide_gradients=wide_gradients)
        for layer in (self.gate_proj, self.up_proj, self.down_proj)
    ]
    x_dropped = drop(projections[0], x, self.training)
    tensors = [tensor for each in projections for tensor in each.trained]
    frozen = tuple(each.frozen for each in projections)
    out: torch.Tensor = LoraMlp.apply(frozen, x, x_dropped, *tensors)
    return out


class LoraMlp(torch.autograd.Function):
    """Keeps the input, its copy after dropout, gate, up, and the adapters' matrices in the input's dtype."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(
        ctx: Any,
        frozen: tuple[Frozen, ...],
        x: torch.Tensor,
        x_dropped: torch.Tensor | None,
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        trained = split(tensors, TRAINED)
        projections = [Projection.of(fixed, each) for fixed, each in zip(frozen, trained, strict=True)]
        gate, up = (project_forward(each, x, x_dropped, sums_again=True) for each in projections[:2])
        kept = [gate.keep(), up.keep()]
        hidden = torch.empty_like(gate.output)
        down = project_forward(projections[2], hidden, None, sums_again=False)
        kept.append(down.keep())
        saved = [
            each for weights, of_dora in zip(trained, kept, strict=True) for each in (*cast(weights, x.dtype), *of_dora)
        ]
        ctx.save_for_backward(x, x if x_dropped is None else x_dropped, gate.output, up.output, *saved)
        ctx.frozen, ctx.has_dropout = frozen, x_dropped is not None
        return down.output

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        x, x_lora, gate, up, *saved = ctx.saved_tensors
        of_gate, of_up, of_down = split(saved, KEPT)
        frozen_gate, frozen_up, frozen_down = ctx.frozen
        flat = x_lora.reshape(-1, x_lora.shape[-1])
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        grad, grad_down_magnitude = through_magnitude(grad, of_down)
        product = project(grad, Projection(frozen_down, of_down[0], of_down[1]), transposed=True)
        grad_gate, grad_gate_magnitude = through_magnitude(gate.view(-1, gate.shape[-1]), of_gate)
        grad_up, grad_up_magnitude = through_magnitude(up.view(-1, up.shape[-1]), of_up)
        down = adapter_gradients(grad, product, of_down, frozen_down)
        upper = adapter_gradients(grad_up, flat, of_up, frozen_up)
        gated = adapter_gradients(grad_gate, flat, of_gate, frozen_gate)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[1]:
            grad_x = add_base_gradient(None, grad_up, frozen_up)
            grad_x = add_base_gradient(grad_x, grad_gate, frozen_gate)
            into = grad_x
            if ctx.has_dropout:
                into = grad_dropped = torch.zeros_like(flat)
            for each, kept, fixed in ((upper, of_up, frozen_up), (gated, of_gate, frozen_gate)):
                if each.inner is not None and kept[0] is not None:
                    into.addmm_(each.inner, kept[0].to(into.dtype), alpha=fixed.scaling)
        shaped = [None if each is None else each.view(x.shape) for each in (grad_x, grad_dropped)]
        return (
            None,
            *shaped,
            *gated.trained,
            grad_gate_magnitude,
            *upper.trained,
            grad_up_magnitude,
            *down.trained,
            grad_down_magnitude,
        )
