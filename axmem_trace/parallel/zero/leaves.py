"""Modules whose parameters are gathered together with those of all modules inside them: blocks of experts.

Source: axolotl 0.21 `common/architectures.py` `MOE_ARCH_BLOCK`, `loaders/model.py` `_set_z3_leaf_modules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from axmem_trace.models.built import unwrapped

BLOCKS: dict[str, tuple[str, ...]] = {
    "afmoe": ("AfmoeMoE",),
    "bailing_hybrid": ("BailingMoeV3SparseMoeBlock",),
    "dbrx": ("DbrxFFN",),
    "deepseek_v2": ("DeepseekV2MoE",),
    "deepseek_v3": ("DeepseekV3MoE",),
    "glm4_moe": ("Glm4MoeDecoderLayer",),
    "glm4_moe_lite": ("Glm4MoeLiteDecoderLayer",),
    "glm5_next_text": ("Glm5NextTextMoE",),
    "glm_moe_dsa": ("GlmMoeDsaDecoderLayer",),
    "gpt_oss": ("GptOssDecoderLayer",),
    "jamba": ("JambaSparseMoeBlock",),
    "jetmoe": ("JetMoeMoA", "JetMoeMoE"),
    "lfm2_moe": ("Lfm2MoeSparseMoeBlock",),
    "minimax_m2": ("MiniMaxM2SparseMoeBlock",),
    "mistral4": ("Mistral4MoE",),
    "mixtral": ("MixtralSparseMoeBlock",),
    "nemotron_h": ("NemotronHMoE",),
    "qwen2_moe": ("Qwen2MoeSparseMoeBlock",),
    "qwen3_5_moe": ("Qwen3_5MoeSparseMoeBlock",),
    "qwen3_moe": ("Qwen3MoeSparseMoeBlock",),
    "qwen3_vl_moe": ("Qwen3VLMoeTextSparseMoeBlock",),
    "qwen4_exp_text": ("Qwen4ExpTextSparseMoeBlock",),
}
"""Class names by model type."""


def leaf_test(model: nn.Module) -> Callable[[nn.Module], bool]:
    """A function that returns whether a module is such a block."""
    config: Any = unwrapped(model).config
    text = getattr(config, "text_config", None)
    names = {name for each in (config, text) for name in BLOCKS.get(getattr(each, "model_type", ""), ())}
    return lambda module: type(module).__name__ in names
