"""Experts as in transformers 4: a linear layer for each expert and projection. The experts run one after the other.

No class here may have `Linear` in its name: axolotl treats every such class as a linear layer (`find_all_linear_names`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced

_GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
_NAMES = {"mixtral": ("w1", "w3", "w2")}
"""Model type -> names of gate, up and down projection, if they are not the usual ones."""
_LINEAR_GATES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""Types whose router was a linear layer named `gate` in transformers 4, so that it was quantised and could have LoRA."""


class SeparateExpert(nn.Module):
    """One expert. Source: transformers 4.48 `modeling_mixtral.py` `MixtralBlockSparseTop2MLP`."""

    def __init__(self, hidden: int, inner: int, act_fn: Any, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.act_fn, self.names = act_fn, names
        for name, shape in zip(names, ((hidden, inner), (hidden, inner), (inner, hidden)), strict=True):
            self.add_module(name, nn.Linear(*shape, bias=False))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Gate and up projection, then down projection."""
        gate, up, down = (getattr(self, name) for name in self.names)
        out: torch.Tensor = down(self.act_fn(gate(hidden)) * up(hidden))
        return out


class SeparateExperts(nn.ModuleList):
    """The loop of transformers 4.48 `modeling_mixtral.py` `MixtralSparseMoeBlock.forward`, which calls every expert."""

    def __init__(self, fused: Any, names: tuple[str, str, str]) -> None:
        count, twice, hidden = fused.gate_up_proj.shape
        super().__init__(SeparateExpert(hidden, twice // 2, fused.act_fn, names) for _ in range(count))
        self.num_experts = count

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Tokens [tokens, hidden]; the index of each token's experts, and their weights, both [tokens, top_k]."""
        out = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        mask = F.one_hot(index, num_classes=self.num_experts).permute(2, 1, 0)
        for number, expert in enumerate(self):
            slot, token = torch.where(mask[number])
            current = hidden[None, token].reshape(-1, hidden.shape[-1])
            weighted = expert(current) * weights[token, slot, None]
            out.index_add_(0, token, weighted.to(hidden.dtype))
        return out


def unfuse_experts(model: nn.Module, recipe: Recipe) -> None:
    """Replace fused experts by linear layers, if the recipe assumes them.

    Raises:
        ConfigError: the model has no fused experts, or they have biases or another layout.
    """
    if recipe.older.experts_layout == "fused":
        return
    names = _NAMES.get(recipe.model.base.model_type, _GATE_UP_DOWN)
    fused = [name for name, module in model.named_modules() if _is_fused(module)]
    if not fused:
        raise ConfigError(
            problem=f"{type(model).__name__} has no fused experts with gate, up and down projection and without biases",
            key="experts_layout",
            value=recipe.older.experts_layout,
            accepted="fused",
            remedy="remove `--assume experts_layout`",
        )
    for name in fused:
        model.set_submodule(name, SeparateExperts(model.get_submodule(name), names))
        if recipe.model.base.model_type in _LINEAR_GATES and not getattr(model.config, "output_router_logits", False):
            _make_gate_linear(model.get_submodule(name.rpartition(".")[0]))


def _make_gate_linear(block: Any) -> None:
    """Replace the block's router by a linear layer, as in transformers 4. `route_by_linear_gates` does the routing.

    If a run needs the routers' logits, the router stays: transformers 5 collects the logits by the routers' class.
    """
    router = block.gate
    experts, hidden = router.weight.shape
    block.top_k, block.normalises = router.top_k, getattr(router, "norm_topk_prob", True)
    block.gate = nn.Linear(hidden, experts, bias=False)


def route_by_linear_gates(model: nn.Module) -> None:
    """Add hooks to linear gates that choose experts and return them in the form that transformers 5 expects.

    The gates may be packed now, or have an adapter.

    Source: transformers 4.48 `modeling_mixtral.py` `MixtralSparseMoeBlock.forward`, `modeling_qwen2_moe.py`
    `Qwen2MoeSparseMoeBlock.forward`: softmax in fp32 over the logits [tokens, experts], the largest `top_k`, normalised
    (Mixtral always, the others by `norm_topk_prob`).
    """
    block: Any
    for block in model.modules():
        if isinstance(getattr(block, "experts", None), SeparateExperts) and hasattr(block, "normalises"):
            block.gate.register_forward_hook(partial(_choose_experts, block.top_k, block.normalises))


def _choose_experts(top_k: int, normalises: bool, gate: nn.Module, args: Any, logits: torch.Tensor) -> Any:
    probabilities = F.softmax(logits, dim=1, dtype=torch.float)
    weights, index = torch.topk(probabilities, top_k, dim=-1)
    if normalises:
        weights /= weights.sum(dim=-1, keepdim=True)
    return logits, weights.to(logits.dtype), index


def _is_fused(module: nn.Module) -> bool:
    own = module._parameters
    three_dimensional = all(getattr(own.get(name), "ndim", 0) == 3 for name in ("gate_up_proj", "down_proj"))
    return three_dimensional and len(own) == 2 and not getattr(module, "is_transposed", False)


@contextmanager
def old_expert_names(recipe: Recipe) -> Iterator[None]:
    """Inside this context, peft does not convert the names of linear experts to those of fused ones."""
    if recipe.older.experts_layout == "fused":
        yield
        return
    from peft.utils import transformers_weight_conversion as conversion

    with replaced(conversion, "convert_peft_config_for_transformers", lambda *args, **kwargs: None):
        yield
