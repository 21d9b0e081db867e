"""transformers' own FlashAttention wrapper, around kernels that run on meta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axmem_trace.kernels.attention.flash2 import make_flash2
from axmem_trace.kernels.attention.flash34_functions import make_flash3, make_flash4
from axmem_trace.kernels.modeling_files import loaded_modeling_files
from axmem_trace.kernels.site import Site
from axmem_trace.tracing.context import KernelContext

_LAZY_STATE = tuple(
    """
    _loaded_implementation _flash_fn _flash_varlen_fn _flash_with_kvcache_fn _pad_fn _unpad_fn
    _process_flash_kwargs_fn
    """.split()
)

_FORWARD = "_flash_attention_forward"


def install_flash(site: Site) -> None:
    """While the site is open, transformers behaves as if all versions of the flash kernels were installed.

    Everything around the kernel is transformers' own code: unpadding with the mask, finding samples from position ids, casts
    of fp32 heads, padded value heads. Source: transformers 5, modeling_flash_attention_utils.py, `_lazy_imports`,
    `lazy_import_flash_attention`, `_flash_attention_forward`. Falcon, GPT-J and GPT-Neo import the last one by name if
    flash-attn is installed.
    """
    from transformers import modeling_flash_attention_utils as flash_utils

    context = site.context

    def lazy_imports(implementation: str | None, *args: Any, **kwargs: Any) -> tuple[Callable[..., Any] | None, ...]:
        fixed, varlen = make_functions(context, implementation or context.attention)
        return fixed, varlen, None, flash_utils._pad_input, flash_utils._unpad_input

    for name in _LAZY_STATE:
        site.replace_attribute(flash_utils, name, None)
    site.replace_attribute(flash_utils, "_lazy_imports", lazy_imports)
    if context.attention.startswith("flash_attention"):  # as `_check_and_adjust_attn_implementation` does
        flash_utils.lazy_import_flash_attention(context.attention)
    for module in loaded_modeling_files():
        if hasattr(module, "is_flash_attn_available") and not hasattr(module, _FORWARD):
            site.add_attribute(module, _FORWARD, getattr(flash_utils, _FORWARD))


def make_functions(context: KernelContext, implementation: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """flash-attn's two functions (rows of equal length; samples) of the version that the name says."""
    if "4" in implementation:
        return make_flash4(context)
    if "3" in implementation:
        return make_flash3(context)
    return make_flash2(context)
