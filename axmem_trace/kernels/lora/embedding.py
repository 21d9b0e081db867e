"""axolotl's fused LoRA embedding.

Source: axolotl 0.19 `kernels/lora.py` (`LoRA_Embedding`, `apply_lora_embedding`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.lora.projection import Frozen, Projection, dora_scale


class LoraEmbedding(torch.autograd.Function):
    """Keeps the ids, A [rank, vocabulary] and B [hidden, rank] in the table's dtype, and the rows of A that were looked
    up. Backward computes in fp32: it copies the gradient, A and B."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(
        ctx: Any,
        ids: torch.Tensor,
        projection: Projection,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        magnitude: torch.Tensor | None,
        padding_idx: int | None,
    ) -> torch.Tensor:
        table, scaling = projection.frozen.weight, projection.frozen.scaling
        result = F.embedding(ids, table, padding_idx=padding_idx)
        looked_up = F.embedding(ids, lora_a.t(), padding_idx=padding_idx)
        adapter = looked_up @ lora_b.t()
        if magnitude is None:
            result = result + scaling * adapter
            dora: tuple[torch.Tensor, ...] = ()
        else:
            scale = dora_scale(_transposed(projection), table.dtype)
            combined = result + scaling * adapter
            result = scale.unsqueeze(0) * combined
            dora = (magnitude, scale, combined)
        ctx.save_for_backward(ids, lora_a.to(table.dtype), lora_b.to(table.dtype), looked_up, *dora)
        ctx.scaling, ctx.padding_idx = scaling, padding_idx
        return result

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad,), grad_magnitude = grad_outputs, None
        ids, lora_a, lora_b, looked_up, *dora = ctx.saved_tensors
        if dora:
            magnitude, scale, combined = dora
            flat = combined.view(-1, combined.shape[-1])
            grad_magnitude = (grad.reshape(-1, grad.shape[-1]) * flat).sum(dim=0) * scale / magnitude
            grad = grad * scale.unsqueeze(0).unsqueeze(0)
        looked_up = looked_up.view(-1, looked_up.shape[-1]).to(torch.float32)
        grad = grad.reshape(-1, grad.shape[-1]).to(torch.float32)
        wide_b = lora_b.to(torch.float32)
        grad_b = torch.empty_like(wide_b.t())
        grad_b.addmm_(looked_up.t(), grad, alpha=ctx.scaling, beta=0)
        by_token = ctx.scaling * grad @ wide_b
        ids = ids.reshape(-1)
        if ctx.padding_idx is not None:
            by_token = by_token * (ids != ctx.padding_idx).unsqueeze(1).to(by_token.dtype)
        wide_a = lora_a.to(torch.float32)
        grad_a = torch.zeros_like(wide_a.t())
        grad_a.index_add_(0, ids, by_token.to(grad_a.dtype))
        return None, None, grad_a.t(), grad_b.t(), grad_magnitude, None


def _transposed(projection: Projection) -> Projection:
    """The projection with its table transposed, because DoRA's norms of an embedding are over its rows:
    `_compute_dora_scale(W.t(), ...)`."""
    return replace(projection, frozen=replace(projection.frozen, weight=projection.frozen.weight.t()))


def run_embedding(self: Any, ids: torch.Tensor) -> torch.Tensor:
    """Replaces the forward of a peft `lora.Embedding`: ids [batch, tokens]."""
    table = self.base_layer
    if self.disable_adapters or self.merged:
        plain: torch.Tensor = F.embedding(ids, table.weight, padding_idx=table.padding_idx)
        return plain
    name = self.active_adapters[0]
    lora_a, lora_b = self.lora_embedding_A[name], self.lora_embedding_B[name]
    magnitudes = getattr(self, "lora_magnitude_vector", None) or {}
    magnitude = magnitudes[name].weight if name in magnitudes else None
    projection = Projection(Frozen(table.weight, None, None, self.scaling[name]), lora_a, lora_b, None, magnitude)
    out: torch.Tensor = LoraEmbedding.apply(ids, projection, lora_a, lora_b, magnitude, table.padding_idx)
    return out.to(table.weight.dtype)
