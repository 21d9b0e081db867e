"""Settings that the target GPU does not support. Source: axolotl `utils/schemas/config.py` `check_fp8`,
`check_compute_capability_w_sageattn`, `check_fp8_attention_preflight`."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Gpu
from axmem_trace.units import parse_bytes

FP8_CAPABILITY = (9, 0)
SAGE_CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0))


def refuse_on_gpu(draft: Draft, gpu: Gpu) -> None:
    """Reports what axolotl refuses on the named card. Nothing is known about a card without a name, or only a size.

    axolotl only warns about bf16 on a card without it; `derive_precision` adds a note for that.
    """
    if not gpu.name or _is_bare_size(gpu.name):
        return
    capability = ".".join(map(str, gpu.compute_capability))
    kernel = draft.get("attn_implementation")
    if draft.get("fp8") and gpu.compute_capability < FP8_CAPABILITY:
        draft.refuse(
            f"axolotl refuses this: fp8 is not supported on {gpu.name} (compute capability {capability}, needs 9.0)",
            "fp8",
            remedy="remove fp8, or name another GPU",
        )
    if kernel == "fp8" and gpu.compute_capability < FP8_CAPABILITY:
        draft.refuse(
            f"axolotl refuses this: fp8 attention needs compute capability 9.0, {gpu.name} has {capability}",
            "attn_implementation",
            remedy="use another kernel, or name another GPU",
        )
    if kernel == "sage" and gpu.compute_capability not in SAGE_CAPABILITIES:
        draft.refuse(
            f"axolotl refuses this: SageAttention does not run on compute capability {capability} ({gpu.name})",
            "attn_implementation",
            remedy="use another kernel, or name another GPU",
        )


def _is_bare_size(name: str) -> bool:
    try:
        parse_bytes(name)
    except ValueError:
        return False
    return True
