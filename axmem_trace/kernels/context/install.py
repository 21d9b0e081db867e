"""Replaces the model's attention function by one for rows that are divided among ranks.

Source: axolotl 0.21 `integrations/context_parallel/plugin.py` (`_configure`: `set_attn_implementation`); ringmaster 0.2.7
`strategies/ring.py`, `strategies/usp.py`. transformers creates no mask for a function that it does not know
(`masking_utils.py`, `_preprocess_mask_arguments`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from axmem_trace.kernels.attention.transformers_flash import make_functions
from axmem_trace.kernels.context.gathered import run_gathered, run_gathered_samples
from axmem_trace.kernels.context.heads import AttentionFunction, exchange, exchange_heads, make_ulysses
from axmem_trace.kernels.context.steps import run_steps
from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note
from axmem_trace.parallel.context import find_bounds

NAME = "axmem_divided"
"""The function's name in transformers."""
_KEY = "context_parallel_size"
_RECURRENT = re.compile("Mamba|DeltaNet|DeltaAttention|LightningAttention|ShortConv|RecurrentBlock|Rwkv")
"""Classes, other than attention, in which a token depends on earlier tokens."""


def install_context(site: Site) -> None:
    """Make all attention of the model exchange with the other ranks of a row, until the site is closed."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    context = site.recipe.parallel.context
    if context.size == 1:
        return
    kernel = "sdpa" if site.context.attention == "varlen" else site.context.attention
    _, varlen = make_functions(site.context, kernel)
    if context.ring == 1:
        chosen = make_ulysses(site.recipe, kernel, ALL_ATTENTION_FUNCTIONS[kernel], varlen)
    else:
        chosen = make_ring(site, varlen)
    used: list[bool] = []
    site.replace_items(ALL_ATTENTION_FUNCTIONS._global_mapping, {NAME: _counted(chosen, used)})
    for config in _configurations(site.model):
        site.replace_attribute(config, "_attn_implementation_internal", NAME)
    site.stack.callback(_note_unused, site, used)
    recurrent = sorted(
        {type(module).__name__ for module in site.model.modules() if _RECURRENT.search(type(module).__name__)}
    )
    if recurrent:
        text = f"the layers {', '.join(recurrent)} exchange states with the previous ranks, which is not in the figures"
        site.note(Note(kind="not_modelled", key=_KEY, text=text, direction="more"))


def make_ring(site: Site, varlen: Callable[..., torch.Tensor]) -> AttentionFunction:
    """The attention function of a ring for transformers, with or without an exchange of heads before and after it."""
    recipe, settings = site.recipe, site.recipe.parallel.context
    ranks, place = settings.ring, settings.place_in_ring(torch.distributed.get_rank() // recipe.parallel.mesh.expert)

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        heads = query, key, value
        if settings.heads > 1:
            heads = exchange_heads(heads, settings.heads, joins_all=False)
        rows, tokens = heads[0].shape[0], heads[0].shape[2] * ranks
        window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
        bounds = find_bounds(recipe, module, rows=rows, row_tokens=tokens, window=window)
        if bounds is not None:
            out = run_gathered_samples(heads, varlen, bounds, ranks=ranks, place=place, window=window)
        elif settings.rotation == "allgather":
            out = run_gathered(site.context, heads, ranks=ranks, place=place)
        else:
            out = run_steps(site.context, heads, ranks=ranks, place=place, head_tail=settings.head_tail)
        return (exchange(out, settings.heads, scatter=1, gather=2) if settings.heads > 1 else out), None

    return attention


def _configurations(model: Any) -> list[Any]:
    """The configurations of the model and of its modules, each once."""
    found = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]


def _counted(function: AttentionFunction, used: list[bool]) -> AttentionFunction:
    def attention(*args: Any, **kwargs: Any) -> Any:
        if not used:
            used.append(True)
        return function(*args, **kwargs)

    return attention


def _note_unused(site: Site, used: list[bool]) -> None:
    if not used:
        text = f"{type(site.base).__name__} does not use transformers' attention functions: its exchanges are not known"
        site.note(Note(kind="not_modelled", key=_KEY, text=text, direction="more"))
