"""Architecture -> the classes that Liger replaces: data.

Source: liger-kernel 0.8.1 `transformers/monkey_patch.py` (`MODEL_TYPE_TO_APPLY_LIGER_FN`, `apply_liger_kernel_to_*`)
and axolotl 0.19 `integrations/liger/plugin.py` (`LigerPlugin.pre_model_load`: its own branches, which come first for
Qwen3.5, and after Liger's for the types that Liger does not know).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CrossEntropyHome = Literal["function", "class", "name", "nowhere"]
"""What `liger_cross_entropy` replaces: `torch.nn.functional.cross_entropy`, `torch.nn.CrossEntropyLoss`, or the name
`CrossEntropyLoss` in the model's own module, which few models use today."""
RopeKind = Literal["text", "text and vision", "multimodal", "llama4", "refused", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """One architecture. Class names are those of `transformers.models.<module>.modeling_<module>`."""

    module: str
    rope: RopeKind = "text"
    norms: tuple[str, ...] = ()
    norms_in_place: bool = True
    glu: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    gated_norms: tuple[str, ...] = ()
    layer_norm: bool = False
    fused_loss: tuple[str, ...] = ()
    """Model classes that get a fused linear cross-entropy."""
    cross_entropy: CrossEntropyHome = "function"
    squared_relu: bool = False
    in_table: tuple[str, ...] = ()
    """Attributes whose class comes from a table that the modeling file fills at import: they keep the old class."""


def _llama_like(
    module: str,
    prefix: str,
    *,
    glu: bool = True,
    rope: RopeKind = "text",
    in_place: bool = True,
    cross_entropy: CrossEntropyHome = "function",
    experts: str = "",
) -> Support:
    return Support(
        module=module,
        rope=rope,
        norms=(f"{prefix}RMSNorm",),
        norms_in_place=in_place,
        glu=(f"{prefix}MLP",) if glu else (),
        experts=(experts,) if experts else (),
        fused_loss=(f"{prefix}ForCausalLM",),
        cross_entropy=cross_entropy,
    )


_QWEN2_VL = Support(
    module="qwen2_vl",
    rope="multimodal",
    norms=("Qwen2RMSNorm",),
    glu=("Qwen2MLP",),
    layer_norm=True,
    fused_loss=("Qwen2VLForConditionalGeneration",),
    cross_entropy="name",
)
_QWEN25_VL = Support(
    module="qwen2_5_vl",
    rope="multimodal",
    norms=("Qwen2RMSNorm",),
    glu=("Qwen2MLP",),
    fused_loss=("Qwen2_5_VLForConditionalGeneration",),
    cross_entropy="name",
)
_QWEN3_VL = Support(
    module="qwen3_vl",
    rope="text and vision",
    norms=("Qwen3VLTextRMSNorm",),
    fused_loss=("Qwen3VLForConditionalGeneration",),
)
_QWEN3_VL_MOE = Support(
    module="qwen3_vl_moe",
    rope="text and vision",
    norms=("Qwen3VLMoeTextRMSNorm",),
    experts=("Qwen3VLMoeTextExperts",),
    fused_loss=("Qwen3VLMoeForConditionalGeneration",),
)
_QWEN35_NATIVE = _llama_like("qwen3_5", "Qwen3_5", rope="refused", in_place=False)
_QWEN35_MOE_NATIVE = Support(
    module="qwen3_5_moe",
    rope="refused",
    norms=("Qwen3_5MoeRMSNorm",),
    norms_in_place=False,
    experts=("Qwen3_5MoeExperts",),
    fused_loss=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
)
_LLAMA4 = Support(
    module="llama4",
    rope="llama4",
    norms=("Llama4TextRMSNorm",),
    glu=("Llama4TextMLP",),
    fused_loss=("Llama4ForCausalLM",),
    cross_entropy="name",
)
_MLLAMA = Support(
    module="mllama",
    norms=("MllamaTextRMSNorm",),
    glu=("MllamaTextMLP",),
    layer_norm=True,
    fused_loss=("MllamaForCausalLM",),
)
_MINISTRAL3 = Support(module="ministral3", norms=("Ministral3RMSNorm",), glu=("Ministral3MLP",))
_GEMMA4_UNIFIED = Support(
    module="gemma4_unified",
    rope="none",
    norms=("Gemma4UnifiedRMSNorm",),
    norms_in_place=False,
    glu=("Gemma4UnifiedTextMLP",),
    layer_norm=True,
    cross_entropy="class",
)

LIGER: dict[str, Support] = {
    "cohere_compass": Support(module="cohere_compass", rope="none", glu=("CohereCompassMLP",), layer_norm=True),
    "deepseek_v2": Support(module="deepseek_v2", rope="none", norms=("DeepseekV2RMSNorm",), glu=("DeepseekV2MLP",),
                           fused_loss=("DeepseekV2ForCausalLM",), cross_entropy="name"),
    "deepseek_v4": Support(module="deepseek_v4", rope="none", norms=("DeepseekV4RMSNorm",),
                           fused_loss=("DeepseekV4ForCausalLM",)),
    "exaone4": _llama_like("exaone4", "Exaone4", in_place=False),
    "falcon_h1": _llama_like("falcon_h1", "FalconH1"),
    "gemma": _llama_like("gemma", "Gemma"),
    "gemma2": _llama_like("gemma2", "Gemma2", in_place=False),
    "gemma3_text": _llama_like("gemma3", "Gemma3", in_place=False),
    "gemma3": Support(module="gemma3", norms=("Gemma3RMSNorm",), norms_in_place=False, glu=("Gemma3MLP",),
                      layer_norm=True, fused_loss=("Gemma3ForConditionalGeneration",), cross_entropy="class"),
    "gemma4_text": Support(module="gemma4", rope="none", norms=("Gemma4RMSNorm",), norms_in_place=False,
                           glu=("Gemma4TextMLP",), fused_loss=("Gemma4ForCausalLM", "Gemma4TextForCausalLM")),
    "gemma4": Support(module="gemma4", rope="none", norms=("Gemma4RMSNorm",), norms_in_place=False,
                      glu=("Gemma4TextMLP",), fused_loss=("Gemma4ForConditionalGeneration",)),
    "gemma4_unified": _GEMMA4_UNIFIED,
    "gemma4_unified_text": _GEMMA4_UNIFIED,
    "glm4": _llama_like("glm4", "Glm4", rope="refused", in_place=False),
    "glm4v": Support(module="glm4v", rope="refused", norms=("Glm4vRMSNorm",), norms_in_place=False,
                     fused_loss=("Glm4vForConditionalGeneration",)),
    "glm4v_moe": Support(module="glm4v_moe", rope="refused", norms=("Glm4vMoeRMSNorm", "Glm4vMoeTextRMSNorm"),
                         norms_in_place=False, experts=("Glm4vMoeTextNaiveMoe",),
                         fused_loss=("Glm4vMoeForConditionalGeneration",)),
    "gpt_oss": _llama_like("gpt_oss", "GptOss", glu=False),
    "granite": Support(module="granite", norms=("GraniteRMSNorm",), glu=("GraniteMLP",)),
    "granitemoe": Support(module="granite", norms=("GraniteRMSNorm",), glu=("GraniteMLP",)),
    "hunyuan_v1_dense": _llama_like("hunyuan_v1_dense", "HunYuanDenseV1"),
    "hunyuan_v1_moe": _llama_like("hunyuan_v1_moe", "HunYuanMoEV1", glu=False, experts="HunYuanMoEV1Experts"),
    "internvl": Support(module="internvl", rope="none", norms=("InternVLVisionRMSNorm",), layer_norm=True,
                        fused_loss=("InternVLForConditionalGeneration",),
                        in_table=("layernorm_before", "layernorm_after")),
    "jamba": Support(module="jamba", norms=("JambaRMSNorm",), glu=("JambaMLP",), layer_norm=True,
                     fused_loss=("JambaForCausalLM",)),
    "llama": _llama_like("llama", "Llama"),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "llava": Support(module="llava", rope="none", fused_loss=("LlavaForConditionalGeneration",)),
    "ministral": _llama_like("ministral", "Ministral", cross_entropy="name"),
    "ministral3": _MINISTRAL3,
    "mistral": _llama_like("mistral", "Mistral", cross_entropy="name"),
    "mistral3": _MINISTRAL3,
    "mixtral": _llama_like("mixtral", "Mixtral", glu=False, experts="MixtralExperts"),
    "mllama": _MLLAMA,
    "mllama_text_model": _MLLAMA,
    "muse_glimmer": Support(module="muse_glimmer", norms=("MuseGlimmerTextCenteredRMSNorm", "MuseGlimmerRMSNorm"),
                            norms_in_place=False, glu=("MuseGlimmerTextMLP",), layer_norm=True,
                            cross_entropy="nowhere"),
    "nemotron": Support(module="nemotron", rope="none", fused_loss=("NemotronForCausalLM",), cross_entropy="name",
                        squared_relu=True),
    "olmo2": _llama_like("olmo2", "Olmo2", in_place=False),
    "olmo3": _llama_like("olmo3", "Olmo3", in_place=False),
    "paligemma": Support(module="paligemma", layer_norm=True, fused_loss=("PaliGemmaForConditionalGeneration",),
                         cross_entropy="class"),
    "phi3": _llama_like("phi3", "Phi3"),
    "pixtral": Support(module="pixtral", norms=("PixtralRMSNorm",), glu=("PixtralMLP",), cross_entropy="nowhere"),
    "qwen2": _llama_like("qwen2", "Qwen2"),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl": _QWEN25_VL,
    "qwen2_5_vl_text": _QWEN25_VL,
    "qwen3": _llama_like("qwen3", "Qwen3"),
    "qwen3_moe": _llama_like("qwen3_moe", "Qwen3Moe", glu=False, experts="Qwen3MoeExperts"),
    "qwen3_next": _llama_like("qwen3_next", "Qwen3Next", glu=False, rope="refused", in_place=False,
                              experts="Qwen3NextExperts"),
    "qwen3_5": Support(module="qwen3_5", rope="none", norms=("Qwen3_5RMSNorm",), norms_in_place=False,
                       glu=("Qwen3_5MLP",), gated_norms=("Qwen3_5RMSNormGated",), layer_norm=True,
                       fused_loss=("Qwen3_5ForCausalLM",)),
    "qwen3_5_text": _QWEN35_NATIVE,
    "qwen3_5_moe": Support(module="qwen3_5_moe", rope="none", norms=("Qwen3_5MoeRMSNorm",), norms_in_place=False,
                           glu=("Qwen3_5MoeMLP",), gated_norms=("Qwen3_5MoeRMSNormGated",), layer_norm=True,
                           fused_loss=("Qwen3_5MoeForCausalLM",)),
    "qwen3_5_moe_text": _QWEN35_MOE_NATIVE,
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_text": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL_MOE,
    "qwen3_vl_moe_text": _QWEN3_VL_MOE,
    "smollm3": _llama_like("smollm3", "SmolLM3"),
    "smolvlm": Support(module="smolvlm", rope="none", norms=("SmolVLMRMSNorm",), layer_norm=True,
                       fused_loss=("SmolVLMForConditionalGeneration",)),
}  # fmt: skip
"""`model_type` -> its entry. Other types get at most a generic fused linear cross-entropy."""
