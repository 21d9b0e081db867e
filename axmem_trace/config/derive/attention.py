"""The attention kernel. Source: axolotl `utils/schemas/enums.py`, `loaders/model.py` `_set_attention_config`,
`loaders/patch_manager.py` `_apply_sdpa_varlen_patch`, `monkeypatch/attention/sdpa_varlen.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axmem_trace.config.derive.model_kwargs import KEY as MODEL_KWARGS
from axmem_trace.config.derive.model_kwargs import attention_override
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Attention, BaseModel, Dtype

CANONICAL_KERNELS = tuple(
    """
    eager sdpa flash_attention_2 flash_attention_3 flash_attention_4 flash_attention_torch flex_attention xformers
    sage fp8
    """.split()
)
SHORT_NAMES = {"flash": "flash_attention_2", "flex": "flex_attention", "sdp": "sdpa"}
HUB_KERNELS = {
    "kernels-community/flash-attn2": "flash_attention_2",
    "kernels-community/flash-attn3": "flash_attention_3",
    "kernels-community/sage-attention": "sage",
}
"""Kernels of the Hugging Face Hub that axolotl lists as supporting packing -> the kernel that each contains."""
OTHER_HUB_KERNELS = {
    "kernels-community/vllm-flash-attn3": "flash_attention_3",
    "kernels-community/flash-attn4": "flash_attention_4",
}
"""Kernels of the Hub that transformers knows (`FLASH_ATTN_KERNEL_FALLBACK`, gpt-oss's
`_compatible_flash_implementations`) but axolotl does not: packed rows keep their mask."""
PACKING_KERNELS = frozenset(
    {
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
        "flash_attention_torch",
        "flex_attention",
        "xformers",
        "sage",
        *HUB_KERNELS,
    }
)
"""`ATTN_IMPLS_SUPPORTING_PACKING`: position ids separate the samples of a packed row."""
MAX_VARLEN_HEAD_DIM = 256
NO_VARLEN_TYPES = ("bailing_hybrid",)


def base_name(kernel: str | None) -> str | None:
    """`org/name@v2` and `org/name:function` without their suffix (`attn_impl_base`)."""
    return None if kernel is None else kernel.split(":", 1)[0].split("@", 1)[0].strip()


def supports_packing(draft: Draft) -> bool:
    """`attn_supports_packing`."""
    return base_name(draft.get("attn_implementation")) in PACKING_KERNELS


def decontaminates_packing(draft: Draft) -> bool:
    """`attn_decontaminates_packing`: the mask is dropped, and position ids separate the samples."""
    return supports_packing(draft) or draft.get("attn_implementation") in ("sdpa", "eager")


def derive_attention(draft: Draft, base: BaseModel, load_dtype: Dtype) -> Attention:
    """`Attention` from the keys and the model's head sizes.

    Raises:
        ConfigError: a name that axolotl refuses.
    """
    _refuse_name(draft, draft.get("attn_implementation"))
    asked = draft.get("attn_implementation")
    override = attention_override(draft)
    kernel = asked or override or "sdpa"
    if override:
        draft.reason(
            "attention.kernel", kernel, f"`{MODEL_KWARGS}`; axolotl's own rules see no kernel", key=MODEL_KWARGS
        )
    elif asked is None:
        draft.reason("attention.kernel", "sdpa", "no key is set: transformers' default", origin="default")
    elif "attention.kernel" not in draft.reasons:
        draft.reason_of_key("attention.kernel", kernel, "attn_implementation")
    if "/" in kernel:
        kernel = _hub_kernel(draft, kernel)
    elif kernel == "fp8":
        kernel = "sdpa"
        text = "fp8 attention is not in the figures: they are with SDPA, which needs more memory"
        draft.note("not_modelled", "attn_implementation", text, direction="less", touches="activations")
    elif kernel == "sdpa":
        kernel = _sdpa_or_varlen(draft, base, load_dtype)
    return Attention(
        kernel=kernel,
        fused_attn_kernel=bool(draft.get("fused_attn_kernel")),
        gemma4_hybrid=bool(draft.get("gemma4_hybrid_attn_impl")) and base.model_type.startswith("gemma4"),
    )


def _refuse_name(draft: Draft, asked: str | None) -> None:
    if asked is None or asked in CANONICAL_KERNELS or "/" in asked:
        return
    problem = "axolotl refuses this: no such attention implementation"
    if asked in SHORT_NAMES:
        line = f"attn_implementation: {SHORT_NAMES[asked]}"
        draft.refuse(f"{problem} (the figures are with `{line}`)", "attn_implementation", remedy=f"write `{line}`")
        draft.values["attn_implementation"] = SHORT_NAMES[asked]
        return
    raise draft.error(
        problem,
        "attn_implementation",
        accepted=", ".join(CANONICAL_KERNELS) + ", or a Hub kernel such as kernels-community/flash-attn2",
        remedy="use one of these",
    )


def _hub_kernel(draft: Draft, kernel: str) -> str:
    name = base_name(kernel) or ""
    known = HUB_KERNELS.get(name) or OTHER_HUB_KERNELS.get(name)
    if known is None:
        text = f"the Hub kernel {kernel} is not known here: estimated as flash_attention_2"
        draft.note("not_modelled", "attn_implementation", text, direction="either", touches="activations")
    return known or "flash_attention_2"


def _sdpa_or_varlen(draft: Draft, base: BaseModel, load_dtype: Dtype) -> str:
    """axolotl's packed SDPA, if its kernel supports the model (torch 2.10 and later)."""
    if not draft.get("sample_packing") or draft.get("sdpa_varlen") is False:
        return "sdpa"
    if draft.get("attn_implementation") != "sdpa":
        if draft.get("sdpa_varlen"):
            text = "`sdpa_varlen` has no effect without `attn_implementation: sdpa`: packed rows keep their mask"
            draft.note("warning", "sdpa_varlen", text)
        return "sdpa"
    obstacle = _varlen_obstacle(base.config)
    if load_dtype == "float32":
        obstacle = "the model is loaded in fp32"
    if base.model_type in NO_VARLEN_TYPES:
        obstacle = f"axolotl excludes {base.model_type}"
    if obstacle:
        text = (
            f"sdpa with a block-diagonal mask (sequence x sequence): varlen can't run packed rows, because {obstacle}"
        )
        draft.reason("attention.kernel", "sdpa", text, origin="derived")
        return "sdpa"
    text = "`attn_implementation: sdpa` with sample_packing: axolotl installs its variable-length SDPA"
    draft.reason("attention.kernel", "varlen", text, key="attn_implementation", origin="derived")
    return "varlen"


def _varlen_obstacle(config: Mapping[str, Any]) -> str:
    """Why the kernel does not support the model. axolotl only reads the top level of the configuration."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim")
    if not head_dim and isinstance(hidden, int) and isinstance(heads, int) and heads:
        head_dim = hidden // heads
    if isinstance(head_dim, int) and head_dim > MAX_VARLEN_HEAD_DIM:
        return f"its head size {head_dim} is over {MAX_VARLEN_HEAD_DIM}"
    layer_types = config.get("layer_types")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) is not False else None
    if window and (not isinstance(layer_types, list) or "sliding_attention" in layer_types):
        return f"the model has a sliding window of {window}"
    query = config.get("qk_head_dim") or (config.get("qk_nope_head_dim") or 0) + (config.get("qk_rope_head_dim") or 0)
    value = config.get("v_head_dim")
    return "its query and value heads differ in size" if query and value and query != value else ""
