"""The attention functions and masks that axolotl registers in transformers under its own names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from axmem_trace.kernels.attention.packed_sdpa import make_packed_sdpa, packed_sdpa_mask
from axmem_trace.kernels.attention.sage import make_sage
from axmem_trace.kernels.attention.xformers_attention import make_xformers
from axmem_trace.kernels.site import Site


def install_names(site: Site) -> None:
    """Register `xformers` and `sage` (with FlashAttention's masks) in transformers, and packed SDPA as `sdpa`.

    Source: axolotl 0.19, monkeypatch/attention/__init__.py, `register_xformers_attn`, `register_sage_attn`;
    sdpa_varlen.py, `patch_sdpa_varlen`.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    context = site.context
    functions = {"xformers": make_xformers(context), "sage": make_sage(context)}
    masks = {"xformers": flash_attention_mask, "sage": flash_attention_mask}
    if context.attention == "varlen":
        functions["sdpa"], masks["sdpa"] = make_packed_sdpa(context), packed_sdpa_mask
    else:
        functions["sdpa"] = without_softcap(ALL_ATTENTION_FUNCTIONS["sdpa"])
    site.replace_items(ALL_ATTENTION_FUNCTIONS._global_mapping, functions)
    site.replace_items(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, masks)


def without_softcap(sdpa: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' function for SDPA, which ignores the soft cap of scores, as in the releases that axolotl pins.

    Source: transformers 5.16 and 5.20 `integrations/sdpa_attention.py`: `sdpa_attention_forward` accepts `softcap` (Gemma 2)
    as one of its keywords and ignores it. 5.24 refuses it.
    """

    @functools.wraps(sdpa)
    def forward(*args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
        return sdpa(*args, **kwargs)

    return forward
