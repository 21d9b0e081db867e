"""Tensors that older libraries kept despite checkpointing: GPT-BigCode's cache, and the inputs of 4-bit layers.

For `--assume use_cache=true` and `--assume bnb_keeps_inputs=true`. Other trainers use the cache if the model's
configuration sets it. axolotl switches it off (`loaders/utils.py` `check_model_config`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.site import Site

PROJECTIONS = {"gpt_bigcode": "attn.c_attn"}
"""Model type -> the layer that computes query, key and value together.

Until transformers 4.49 these types did not switch the cache off under checkpointing. A view is cached, so the whole
output of that layer stays alive (`modeling_gpt_bigcode.py`, `GPTBigCodeAttention.forward`: `present = key_value`,
`GPTBigCodeModel.forward`: `presents.append(outputs[1])`)."""


def install_older_cache(site: Site) -> None:
    """Add `past_key_values` to the outputs, as in those releases. They are freed when the caller drops the outputs."""
    projection = PROJECTIONS.get(site.model_type)
    if not site.recipe.older.use_cache or not site.recipe.checkpointing.enabled or projection is None:
        return
    original = site.base.forward
    cached: list[list[torch.Tensor]] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if cached:  # not during recomputation
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


def install_older_bitsandbytes(site: Site) -> None:
    """Keep the inputs of 4-bit layers alive as long as the graph.

    bitsandbytes until 0.43.1 kept them as an attribute of the node (`autograd/_functions.py`, `MatMul4Bit.forward`:
    `ctx.tensors = (A, B)`). Neither non-reentrant checkpointing nor the end of backward frees them.
    """
    if not site.recipe.older.bnb_keeps_inputs or site.recipe.quantisation.method != "bnb_4bit":
        return
    from bitsandbytes.autograd import _functions

    original = _functions.MatMul4Bit.forward

    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        result: torch.Tensor = original(ctx, *arguments)
        if any(ctx.needs_input_grad[:2]):
            ctx.kept_input = arguments[0]
        return result

    site.replace_attribute(_functions.MatMul4Bit, "forward", staticmethod(forward))
