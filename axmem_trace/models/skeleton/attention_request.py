"""Set the attention kernel's name in every part of the model's configuration, even if its package is not installed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axmem_trace.notes import Note, Notes
from axmem_trace.tracing.patching import replaced

_BEHIND = {"varlen": "sdpa"}
"""axolotl's packed SDPA replaces the function named `sdpa`; transformers only gets this name."""

_HUB_RELEASES = {
    "kernels-community/flash-attn2": "flash_attention_2",
    "kernels-community/flash-attn3": "flash_attention_3",
    "kernels-community/vllm-flash-attn3": "flash_attention_3",
    "kernels-community/flash-attn4": "flash_attention_4",
}


@contextmanager
def attention_without_packages(kernel: str, notes: Notes) -> Iterator[None]:
    """Inside this context, transformers accepts `kernel` for a model that supports it, without its package.

    A kernel that the model class itself refuses (`_supports_sdpa`, `_supports_flash_attn`, `_supports_flex_attn`) is still
    refused, with transformers' own ValueError.

    Source: transformers `modeling_utils.py` `_check_and_adjust_attn_implementation`, `_flash_attn_can_dispatch`.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel._check_and_adjust_attn_implementation
    requested = _BEHIND.get(kernel, kernel)
    accepted = {requested, *(_HUB_RELEASES.values() if requested.startswith("flash_attention") else ())}

    def check(self: Any, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation is None or requested in ("sdpa", "eager") or attn_implementation not in accepted:
            return original(self, attn_implementation, *args, **kwargs)
        _refuse_unsupported(self, attn_implementation)
        return _compatible_flash_kernel(self, attn_implementation, notes)

    with replaced(PreTrainedModel, "_check_and_adjust_attn_implementation", check):
        yield


def request_attention(config: Any, kernel: str, *, asked: bool = False) -> None:
    """Set `kernel` on the configuration and its sub-configurations.

    If the kernel was not `asked` for, transformers uses its default: `sdpa`, or `eager` for a class without SDPA (gpt-oss).
    If `sdpa` is requested by name, such a class refuses it.

    Source: transformers `modeling_utils.py` `get_correct_attn_implementation`; axolotl `_set_attention_config`.
    """
    config._attn_implementation = None if kernel == "sdpa" and not asked else _BEHIND.get(kernel, kernel)


def _refuse_unsupported(model: Any, kernel: str) -> None:
    name = type(model).__name__
    if kernel.startswith("flash_attention") and not model._supports_flash_attn:
        raise ValueError(f"{name} does not support {kernel}")
    if kernel == "flex_attention" and not model._supports_flex_attn:
        raise ValueError(f"{name} does not support flex attention")


def _compatible_flash_kernel(model: Any, kernel: str, notes: Notes) -> str:
    """The flash kernel that the model's class accepts: the first in its list, under transformers' name for it."""
    compatible = getattr(model, "_compatible_flash_implementations", None)
    if not kernel.startswith("flash_attention") or not compatible or kernel in compatible:
        return kernel
    release = _HUB_RELEASES.get(compatible[0], compatible[0] if compatible[0].startswith("flash_attention") else kernel)
    text = f"{type(model).__name__} runs {compatible[0]} instead of {kernel} (transformers replaces it automatically)"
    if release != kernel:
        notes.append(Note(kind="assumed", key="attn_implementation", text=text))
    return release
