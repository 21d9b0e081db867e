"""`gemma4_hybrid_attn_impl`: Gemma 4's global layers (head size 512) run SDPA, the others FlashAttention-2.

Source: axolotl 0.19 `loaders/patch_manager.py` (`_apply_gemma_hybrid_attention`) and
`monkeypatch/gemma4_hybrid_mask.py`, with `large_head_attention` at its default, `sdpa`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.modeling_files import modeling_module
from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note

NAME = "sdpa_global_packed"
_MODELS = ("gemma4", "gemma4_unified")
_LARGEST_GROUPED_HEAD = 256
"""For larger heads axolotl repeats keys and values, because with grouped queries SDPA would choose its math path."""


def install_gemma4_hybrid(site: Site) -> None:
    """If the recipe requests it, make the model's global layers run SDPA, with a mask of the samples if rows are packed."""
    if not site.recipe.attention.gemma4_hybrid:
        return
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    forward = _make_forward(sdpa_attention.sdpa_attention_forward, packed=site.recipe.batch.packed)
    site.replace_items(ALL_ATTENTION_FUNCTIONS._global_mapping, {NAME: forward})
    asks = sdpa_attention.use_gqa_in_sdpa

    def use_gqa(mask: Any, key: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
        return key.shape[-1] <= _LARGEST_GROUPED_HEAD and bool(asks(mask, key, *args, **kwargs))

    site.replace_attribute(sdpa_attention, "use_gqa_in_sdpa", use_gqa)
    for name in _MODELS:
        _replace_masks(site, name)
    layers = list(_global_attention(site.model))
    for attention in layers:
        site.replace_attribute(attention, "config", _under(attention.config, NAME))
    text = f"{len(layers)} global layers run SDPA, the others FlashAttention-2 (axolotl gemma4_hybrid_mask.py)"
    site.note(Note(kind="ruled", key="gemma4_hybrid_attn_impl", text=text))


def _replace_masks(site: Site, name: str) -> None:
    """Make transformers create the masks of full attention for SDPA, even if the rest of the model runs another kernel."""
    modeling: Any = modeling_module(name)
    if modeling is None:
        return
    original = modeling.create_causal_mask

    def create_causal_mask(config: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("and_mask_function") is None:
            config = _under(config, "sdpa")
        return original(config, *args, **kwargs)

    site.replace_attribute(modeling, "create_causal_mask", create_causal_mask)


def _under(config: Any, implementation: str) -> Any:
    config = copy.copy(config)
    config._attn_implementation_internal = implementation
    return config


def _global_attention(model: nn.Module) -> Iterator[Any]:
    """The attention of each layer whose type is not `sliding_attention`."""
    for module in model.modules():
        kinds = getattr(getattr(module, "config", None), "layer_types", None)
        layers = module._modules.get("layers")
        if kinds is not None and isinstance(layers, nn.ModuleList):
            for kind, layer in zip(kinds, layers, strict=False):
                if kind != "sliding_attention" and hasattr(layer, "self_attn"):
                    yield layer.self_attn


def _make_forward(sdpa: Callable[..., Any], *, packed: bool) -> Callable[..., Any]:
    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        positions = kwargs.get("position_ids")
        if attention_mask is None and packed and positions is not None:
            attention_mask = _mask_of_samples(positions, query.dtype)
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    return forward


def _mask_of_samples(positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [rows, 1, tokens, tokens]. Each layer computes its own, with three temporary boolean matrices."""
    positions = positions[None] if positions.dim() == 1 else positions
    rows, tokens = positions.shape
    sample = (positions == 0).cumsum(-1)
    same = sample[:, :, None] == sample[:, None, :]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=positions.device).tril()[None]
    allowed = same & causal
    mask = torch.zeros(rows, 1, tokens, tokens, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~allowed[:, None], torch.finfo(dtype).min)
