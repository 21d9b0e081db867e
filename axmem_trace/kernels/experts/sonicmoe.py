"""SonicMoE: two grouped matmuls in CuTe compute the experts. Routed rows are gathered while they are read.

Sources: sonic-moe 0.1.2.post1 (which the Hub's `kernels-community/sonic-moe` builds), `sonicmoe/functional/__init__.py`
(`moe_general_routing_inputs`, `_UpProjection`, `_DownProjection`), `functional/backward.py`
(`_down_projection_backward_act`), `functional/triton_kernels/__init__.py` (`general_routing_router_metadata_triton`);
transformers 5.16 `integrations/sonicmoe.py` (`sonicmoe_experts_forward`); axolotl 0.19,
`integrations/kernels/libs/sonicmoe/experts.py`, `lora.py` (`MoELoRAMaterialize`). Not counted: the partial sums of the
scores' gradient, one fp32 value per routed row and tile of columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from axmem_trace.errors import ConfigError

ROUTED_A_TILE = 1024
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_tanh")


class Metadata(NamedTuple):
    """The routing as int32 tensors that are kept for backward: the start of each expert's rows, the token of each row, the
    permutation from the order of tokens and its inverse, and the start of each token's rows."""

    starts: torch.Tensor
    gather: torch.Tensor
    scatter: torch.Tensor
    reverse: torch.Tensor
    by_token: torch.Tensor


class _UpProjection(torch.autograd.Function):
    """Keeps x and the weights. The down projection keeps this projection's output before the activation. Backward computes
    the weights' gradient even if the weights do not train."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, meta: Metadata) -> Any:
        rows, inner = meta.gather.size(0), weight.shape[0] // 2
        activated = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
        before = torch.empty(rows, 2 * inner, dtype=x.dtype, device=x.device)
        ctx.save_for_backward(x, weight, bias, *meta)
        ctx.mark_non_differentiable(activated)
        ctx.set_materialize_grads(False)
        return activated, before

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad = grad_outputs[1]
        x, weight, bias, *_ = ctx.saved_tensors
        expanded = torch.empty(grad.shape[0], x.shape[1], dtype=grad.dtype, device=grad.device)
        d_weight = torch.empty_like(weight)
        d_bias = None if bias is None else torch.empty_like(bias)
        d_x = torch.empty(x.shape, dtype=grad.dtype, device=grad.device)
        del expanded
        return d_x, d_weight, d_bias, None


class _DownProjection(torch.autograd.Function):
    """Keeps the output of the up projection before the activation, the weights and the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        activated: torch.Tensor,
        before: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scores: torch.Tensor,
        meta: Metadata,
        tokens: int,
    ) -> torch.Tensor:
        by_route = torch.empty(activated.size(0), weight.shape[0], dtype=activated.dtype, device=activated.device)
        out = torch.empty(tokens, weight.shape[0], dtype=activated.dtype, device=activated.device)
        ctx.save_for_backward(before, weight, bias, scores, meta.starts, meta.gather, meta.scatter)
        del by_route
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        before, weight, bias, scores, _, _, scatter = ctx.saved_tensors
        d_weight = torch.empty_like(weight)
        d_bias = None if bias is None else torch.empty_like(bias)
        d_before = torch.empty_like(before)
        again = torch.empty(before.size(0), weight.size(1), dtype=before.dtype, device=before.device)
        d_scores = torch.empty_like(scores)
        sorted_scores = scores[scatter]
        d_sorted = torch.empty_like(sorted_scores)
        d_scores[scatter] = d_sorted
        del again, sorted_scores, d_sorted
        return None, d_before, d_weight, d_bias, d_scores, None, None


class MergedWeights(torch.autograd.Function):
    """`MoELoRAMaterialize`: adds the adapters to all experts' weights. The result is one tensor, which the kernel keeps."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float) -> Any:
        experts, rows, columns = weight.shape
        a_by_expert, b_by_expert = _by_expert(lora_a, lora_b, experts, rows, columns)
        ctx.save_for_backward(lora_a, lora_b)
        ctx.scaling, ctx.experts = scaling, experts
        return torch.baddbmm(weight, b_by_expert, a_by_expert, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        lora_a, lora_b = ctx.saved_tensors
        (grad,) = grad_outputs
        experts, rows, columns = grad.shape
        a_by_expert, b_by_expert = _by_expert(lora_a, lora_b, experts, rows, columns)
        d_a = ctx.scaling * torch.bmm(b_by_expert.transpose(1, 2), grad)
        d_b = ctx.scaling * torch.bmm(grad, a_by_expert.transpose(1, 2))
        return None, d_a.reshape(lora_a.shape), d_b.permute(1, 2, 0).contiguous().reshape(lora_b.shape), None


def _by_expert(
    lora_a: torch.Tensor, lora_b: torch.Tensor, experts: int, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rank = lora_a.shape[0] // experts
    return (lora_a.reshape(experts, rank, columns), lora_b.reshape(rows, rank, experts).permute(2, 0, 1).contiguous())


def run_sonicmoe(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Replaces `sonicmoe_experts_forward_with_lora` for experts that are not packed."""
    _refuse_experts(self)
    (tokens, top_k), device = top_k_index.shape, hidden_states.device
    adapters = getattr(self, "handed_adapters", None) or {}
    gate_up, down = (_merged(self, name, adapters) for name in ("gate_up_proj", "down_proj"))
    biases = [getattr(self, f"{name}_bias") if self.has_bias else None for name in ("gate_up_proj", "down_proj")]
    token_index = torch.arange(tokens, device=device).unsqueeze(1).expand(-1, top_k).reshape(-1).int()
    scores = top_k_weights.reshape(-1).to(hidden_states.dtype)
    expert_index = top_k_index.reshape(-1).int()
    order = (2, 1, 0) if self.is_transposed else (1, 2, 0)
    gate_up, down = gate_up.permute(*order), down.permute(*order)
    scores = scores.float()
    meta, _counts = _route(token_index, expert_index, tokens, self.num_experts)  # the counts stay alive, too
    activated, before = _UpProjection.apply(hidden_states, gate_up, biases[0], meta)
    out: torch.Tensor = _DownProjection.apply(activated, before, down, biases[1], scores, meta, tokens)
    return out


def _merged(module: Any, name: str, adapters: dict[str, tuple[Any, ...]]) -> torch.Tensor:
    weight: torch.Tensor = getattr(module, name)
    return MergedWeights.apply(weight, *adapters[name]) if name in adapters else weight


def _route(
    token_index: torch.Tensor, expert_index: torch.Tensor, tokens: int, num_experts: int
) -> tuple[Metadata, torch.Tensor]:
    """`general_routing_router_metadata_triton`, with its temporary counts for each tile; and the counts for each expert."""
    routed, device = expert_index.size(0), expert_index.device

    def integers(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=device)

    scatter, reverse, counts = integers(routed), integers(routed), integers(num_experts)
    starts, gather, by_token = integers(num_experts + 1), integers(routed), integers(tokens + 1)
    by_tile = integers(num_experts, -(-routed // ROUTED_A_TILE))
    counts.copy_(by_tile.sum(dim=1, dtype=torch.int32))
    return Metadata(starts, gather, scatter, reverse, by_token), counts


def _refuse_experts(module: Any) -> None:
    name = str(getattr(module.config, "hidden_act", getattr(module.config, "hidden_activation", "silu"))).lower()
    if not module.has_gate or name not in ACTIVATIONS:
        raise ConfigError(
            f"sonicmoe supports gated experts with {' or '.join(ACTIVATIONS)}; those of {type(module).__name__} are "
            f"{'gated with ' + name if module.has_gate else 'not gated'}",
            key="use_sonicmoe",
            value=True,
            accepted="`experts_implementation: grouped_mm`",
        )
