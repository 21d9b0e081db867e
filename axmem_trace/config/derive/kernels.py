"""The fused kernels that replace a model's own layers. Source: axolotl `integrations/liger`, `utils/schemas/config.py`
`check_auto_enable_lora_kernels`, `utils/config/__init__.py`, `monkeypatch/tiled_mlp/patch.py`."""

from __future__ import annotations

import math

from axmem_trace.config.derive.fsdp import fsdp_version
from axmem_trace.config.derive.parallelism import uses_fsdp
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import BaseModel, Kernels
from axmem_trace.recipe.run import LIGER_KEYS, LORA_KERNEL_KEYS

NO_LORA_KERNEL_TYPES = ("paddleocr_vl", "muse_glimmer", "qwen4_exp", "qwen4_exp_text")
"""Architectures that declare the fused LoRA kernels unsupported (axolotl `model_support/*`)."""
LIGER_ROPE_BY_DEFAULT = ("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl", "qwen3_vl_text")
TOKENS_PER_TILE = 32768


def derive_kernels(draft: Draft, base: BaseModel, row_tokens: int) -> Kernels:
    """`Kernels` from the keys, and those that axolotl switches on automatically."""
    shards = draft.get("tiled_mlp_num_shards") or 0
    tiled = bool(draft.get("tiled_mlp"))
    if tiled:
        default = max(1, math.ceil(row_tokens / TOKENS_PER_TILE))
        text = "`tiled_mlp_num_shards`" if shards else f"one tile per {TOKENS_PER_TILE} tokens of a row"
        draft.reason("kernels.tiled_mlp_shards", shards or default, text, key="tiled_mlp_num_shards" if shards else "")
        shards = shards or default
        if draft.get("tiled_mlp_use_original_mlp") is False:
            text = (
                "axolotl runs a compiled MLP inside the tiles; the figures are with the uncompiled one, which keeps more "
                "memory while a tile is computed"
            )
            draft.note("not_modelled", "tiled_mlp_use_original_mlp", text, direction="less", touches="activations")
    return Kernels(
        liger=_liger(draft, base),
        lora=_lora(draft, base),
        lora_gradients="parameter" if draft.release.behaviour.lora_kernels_keep_gradient_dtype else "step",
        liger_loss="0.8.1" if draft.release.behaviour.liger_head_gradient_is_added else "0.8.4",
        tiled_mlp=tiled,
        tiled_mlp_shards=shards if tiled else 0,
        torch_compile=bool(draft.get("torch_compile")),
    )


def _liger(draft: Draft, base: BaseModel) -> frozenset[str]:
    on = {kernel for kernel, key in LIGER_KEYS.items() if draft.get(key)}
    if "liger" in draft.plugins and draft.get("liger_rope") is None and base.model_type in LIGER_ROPE_BY_DEFAULT:
        draft.reason("kernels.liger", "rope", f"the Liger plugin turns its rotary kernel on for {base.model_type}")
        on.add("rope")
    return frozenset(on)


def _lora(draft: Draft, base: BaseModel) -> frozenset[str]:
    """The kernels in the keys, or those that axolotl switches on if no key is set."""
    adapter = draft.get("adapter")
    asked = {kernel for kernel, key in LORA_KERNEL_KEYS.items() if draft.get(key)}
    if adapter not in ("lora", "qlora"):
        return frozenset()
    said = [key for key in LORA_KERNEL_KEYS.values() if draft.has(key)]
    why_not = ""
    if base.model_type in NO_LORA_KERNEL_TYPES:
        asked, why_not = set(), f"axolotl has none for {base.model_type}"
    elif said and draft.get("trust_remote_code") and asked:  # axolotl refuses them together
        return frozenset()
    elif said:
        draft.reason("kernels.lora", sorted(asked) or "none", f"`{said[0]}`", key=said[0])
        return frozenset(asked)
    elif draft.get("rl"):
        why_not = "not in preference training"
    elif uses_fsdp(draft) and fsdp_version(draft) == 1:
        why_not = "not with FSDP1"
    elif draft.get("nvfp4_merge_aware") or draft.dropped.get("nvfp4_merge_aware"):  # 0.19 reads it unlisted too
        why_not = "not with nvfp4_merge_aware"
    elif adapter == "lora" and draft.get("load_in_8bit"):
        why_not = "not with an int8 base"
    elif draft.get("trust_remote_code"):
        why_not = "not with trust_remote_code"
    if why_not:
        draft.reason("kernels.lora", "none", f"axolotl's fused LoRA kernels: {why_not}", origin="derived")
        return frozenset()
    text = "axolotl switches its fused LoRA kernels on automatically; `lora_mlp_kernel: false` and so on turn them off"
    draft.reason("kernels.lora", "embedding, mlp, o, qkv", text, origin="derived")
    return frozenset(LORA_KERNEL_KEYS)
