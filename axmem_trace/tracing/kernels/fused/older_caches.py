"""Keys and values that a forward of transformers 4 kept although its layers were checkpointed.

For `--assume use_cache=true`, with which other trainers run a model whose configuration says so: axolotl switches the
cache off (`loaders/utils.py` `check_model_config`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.tracing.kernels.fused.forward_patches import Site

PROJECTIONS = {"gpt_bigcode": "attn.c_attn"}
"""Types whose forward, until transformers 4.49, did not switch the cache off under checkpointing: the layer that makes
query, key and value at once. What is cached is a view, so the whole output of that layer stays
(`modeling_gpt_bigcode.py`, `GPTBigCodeAttention.forward`: `present = key_value`, `GPTBigCodeModel.forward`:
`presents.append(outputs[1])`)."""


def install_older_cache(site: Site) -> None:
    """The outputs get `past_key_values` as they had then, and lose them when the caller drops the outputs."""
    projection = PROJECTIONS.get(site.model_type)
    if not site.recipe.model.use_cache or not site.recipe.checkpointing.enabled or projection is None:
        return
    original = site.base.forward
    cached: list[list[torch.Tensor]] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if cached:  # not while a layer is computed again
            cached[-1].append(output[..., site.base.config.hidden_size :])

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        cached.append([])
        try:
            outputs = original(*args, **kwargs)
            outputs["past_key_values"] = cached[-1]
            return outputs
        finally:
            cached.pop()

    for name, module in site.base.named_modules():
        if name.endswith(projection):
            site.stack.callback(module.register_forward_hook(keep).remove)
    site.replace_forward(site.base, forward)
