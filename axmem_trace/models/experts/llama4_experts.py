"""Llama 4's experts as separate linear layers (`llama4_linearized_experts`), which can be quantised and get LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.patching import replaced


class SeparateLlama4Experts(nn.Module):
    """Experts with one `nn.Linear` for each expert and projection. Names are as in checkpoints with this layout.

    Source: axolotl `monkeypatch/models/llama4/modeling.py`. The experts run one after the other on equal slices of the input
    and write into one output tensor.
    """

    def __init__(self, config: Any) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.num_experts = config.num_local_experts
        self.hidden_size = config.hidden_size
        self.act_fn = ACT2FN[config.hidden_act]
        self.gate_projs = self._projections(config.hidden_size, config.intermediate_size)
        self.up_projs = self._projections(config.hidden_size, config.intermediate_size)
        self.down_projs = self._projections(config.intermediate_size, config.hidden_size)

    def _projections(self, in_features: int, out_features: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(in_features, out_features, bias=False) for _ in range(self.num_experts))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Input [experts * tokens, hidden], ordered by expert. The output has the same shape."""
        by_expert = hidden_states.view(self.num_experts, -1, self.hidden_size)
        out = torch.zeros_like(by_expert)
        for index, tokens in enumerate(by_expert):
            gate, up = self.gate_projs[index](tokens), self.up_projs[index](tokens)
            out[index] = self.down_projs[index](up * self.act_fn(gate))
        return out.view(-1, self.hidden_size)


@contextmanager
def linearised_llama4_experts(recipe: Recipe) -> Iterator[None]:
    """Inside this context, Llama 4 models are built with linearised experts, if the recipe requests them."""
    if not recipe.model.llama4_linearized_experts or not recipe.model.base.model_type.startswith("llama4"):
        yield
        return
    from transformers.models.llama4 import modeling_llama4

    with replaced(modeling_llama4, "Llama4TextExperts", SeparateLlama4Experts):
        yield
