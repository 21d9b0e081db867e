"""What older libraries kept in spite of checkpointing: GPT-BigCode's cache, and the inputs of 4-bit layers.

For `--assume use_cache=true`, with which other trainers run a model whose configuration says so (axolotl switches the
cache off: `loaders/utils.py` `check_model_config`), and `--assume bnb_keeps_inputs=true`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.site import Site

PROJECTIONS = {"gpt_bigcode": "attn.c_attn"}
"""Types whose forward, until transformers 4.49, did not switch the cache off under checkpointing: the layer that makes
query, key and value at once. What is cached is a view, so the whole output of that layer stays
(`modeling_gpt_bigcode.py`, `GPTBigCodeAttention.forward`: `present = key_value`, `GPTBigCodeModel.forward`:
`presents.append(outputs[1])`)."""


def install_older_cache(site: Site) -> None:
    """The outputs get `past_key_values`, as in those releases; they are freed when the caller drops the outputs."""
    projection = PROJECTIONS.get(site.model_type)
    if not site.recipe.older.use_cache or not site.recipe.checkpointing.enabled or projection is None:
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


def install_older_bitsandbytes(site: Site) -> None:
    """The inputs of 4-bit layers stay alive as long as the graph: bitsandbytes until 0.43.1 kept them as an attribute of
    the node (`autograd/_functions.py`, `MatMul4Bit.forward`: `ctx.tensors = (A, B)`). Non-reentrant checkpointing does
    not free it, and the end of backward does not either."""
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
