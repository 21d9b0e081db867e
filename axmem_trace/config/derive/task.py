"""Which model is built: base model, class, vocabulary, towers, experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from axmem_trace.config.axolotl.embeddings import embedding_names
from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.model import EXPERT_COUNTS
from axmem_trace.recipe.recipe import BaseModel, Model

Task = Literal["causal-lm", "image-text-to-text", "sequence-classification", "token-classification"]

IMAGE_TEXT_TO_TEXT_TYPES = frozenset(
    """
    aria aya_vision blip blip-2 chameleon cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2
    deepseek_vl deepseek_vl_hybrid diffusion_gemma dots3_note emu3 ernie4_5_vl_moe evolla exaone4_5 fast_vlm florence2
    fuyu gemma3 gemma3n gemma4 gemma4_unified git glm46v glm4v glm4v_moe glm5_next glm_ocr glmga got_ocr2
    granite4_vision granite_docling hunyuan_vl hyperclovax_vision_v2 idefics idefics2 idefics3 inkling2
    inkling_mm_model instructblip instructblipvideo internvl janus kimi_k25 kosmos-2 kosmos-2.5 lfm2-vl lfm2_vl
    lfm3_vl lighton_ocr llama4 llava llava_next llava_next_video llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7
    minimax_m3_vl mistral3 mistral4 mistral_large4 mllama molmo2 muse_glimmer muse_spark nemotron_h_omni ovis2
    paddleocr_vl paligemma perception_lm pi0 pix2struct pp_chart2table pp_formulanet qianfan_ocr qwen2_5_omni_thinker
    qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp shieldgemma2
    smolvlm step3p7 t5gemma2 udop unlimited_ocr video_llama_3 video_llava vipllava vision-encoder-decoder voxtral
    """.split()
)
"""Model types that axolotl loads with `AutoModelForImageTextToText` even for text only: transformers'
`MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES` (5.16.1 and 5.23) and axolotl's `loaders/constants.py`."""


def text_config(base: BaseModel) -> Mapping[str, Any]:
    """The language model's part of the configuration; all of it for a text-only model."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = base.config.get(name)
        if isinstance(inner, Mapping):
            return inner
    return base.config


def is_moe(base: BaseModel) -> bool:
    """True if the configuration has a number of experts. transformers 5 keeps them as fused 3-D parameters."""
    for config in (text_config(base), base.config):
        for name in EXPERT_COUNTS:
            count = config.get(name)
            if isinstance(count, int) and count > 1:
                return True
            if isinstance(count, list) and any(isinstance(item, int) and item > 1 for item in count):
                return True
    ffn = text_config(base).get("ffn_config")
    return isinstance(ffn, Mapping) and int(ffn.get("moe_num_experts") or 0) > 1


def is_multimodal(draft: Draft, base: BaseModel) -> bool:
    """axolotl `utils/config/__init__.py` `normalize_config`, `cfg.is_multimodal`."""
    return base.model_type in IMAGE_TEXT_TO_TEXT_TYPES or "pixtral" in str(draft.get("base_model")).lower()


def derive_model(draft: Draft, base: BaseModel, *, allow_remote_code: bool) -> Model:
    """`Model` from the keys, in the order of `_set_auto_model_loader` and `_build_model` (loaders/model.py)."""
    task, type_of_model, num_labels = _task(draft, base)
    trust = bool(draft.get("trust_remote_code"))
    if trust and not allow_remote_code and "auto_map" in base.config:
        text = (
            "`trust_remote_code: true` is not enough to run code: --trust-remote-code on the command line is needed too"
        )
        draft.note("ignored", "trust_remote_code", text)
    return Model(
        base=base,
        task=task,
        type_of_model=type_of_model,
        num_labels=num_labels,
        trust_remote_code=trust and allow_remote_code,
        added_tokens=_added_tokens(draft),
        resize_embeddings_to_32x=bool(draft.get("resize_token_embeddings_to_32x")),
        shrink_embeddings=bool(draft.get("shrink_embeddings")),
        mean_resizing=_mean_resizing(draft, base),
        fix_untrained_tokens=bool(draft.get("fix_untrained_tokens")),
        experts_implementation=_experts_implementation(draft, base),
        freeze_multimodal=bool(draft.get("freeze_mm_modules")),
        llama4_linearized_experts=bool(draft.get("llama4_linearized_experts")),
        use_onebitllms=bool(draft.get("use_onebitllms")),
        embedding_names=embedding_names(base.model_type, draft.release),
    )


def _mean_resizing(draft: Draft, base: BaseModel) -> bool:
    """True also for an explicit null and for LLaVA: then transformers decides, and its default is true
    (`_resize_token_embeddings`)."""
    asked = draft.get("mean_resizing_embeddings")
    return True if asked is None or base.model_type == "llava" else bool(asked)


def _task(draft: Draft, base: BaseModel) -> tuple[Task, str, int]:
    """The task, the named class and the number of labels. For reward models see `set_reward_model_defaults` of axolotl's
    validation.py."""
    named = _named_class(draft)
    num_labels = int(draft.get("num_labels") or 0)
    if draft.get("reward_model"):
        draft.reason("model.task", "sequence-classification", "`reward_model: true`", key="reward_model")
        return "sequence-classification", named, num_labels or 1
    if draft.get("process_reward_model"):
        draft.reason("model.task", "token-classification", "`process_reward_model: true`", key="process_reward_model")
        return "token-classification", named, num_labels or 2
    if named.endswith("SequenceClassification"):
        draft.reason("model.task", "sequence-classification", f"`type_of_model: {named}`", key="type_of_model")
        return "sequence-classification", named, num_labels or 2
    if named.endswith("TokenClassification"):
        draft.reason("model.task", "token-classification", f"`type_of_model: {named}`", key="type_of_model")
        return "token-classification", named, num_labels or 2
    if is_multimodal(draft, base):
        text = f"axolotl loads {base.model_type} with AutoModelForImageTextToText, for text only too"
        draft.reason("model.task", "image-text-to-text", text)
        return "image-text-to-text", named, num_labels
    draft.reason("model.task", "causal-lm", "axolotl's default", origin="default")
    return "causal-lm", named, num_labels


def _named_class(draft: Draft) -> str:
    """`type_of_model`, if axolotl loads the model with it: not with remote code, and not from GPTQ weights.

    Source: axolotl `loaders/model.py` `_build_model`.
    """
    named = str(draft.get("type_of_model") or "")
    if named in ("", "AutoModelForCausalLM"):
        return named
    for key in ("trust_remote_code", "gptq"):
        if draft.get(key):
            text = f"`{named}` has no effect: with `{key}: true` axolotl loads the model with its Auto class"
            draft.note("ignored", "type_of_model", text)
            return ""
    return named


def _added_tokens(draft: Draft) -> int:
    """New tokens in the configuration. bos, eos, pad and unk usually exist already and are not counted."""
    named = [*(draft.get("tokens") or []), *(draft.sub("special_tokens").get("additional_special_tokens") or [])]
    if named:
        key = "tokens" if draft.get("tokens") else "special_tokens"
        text = (
            f"{len(named)} tokens are named. Each is counted as a new row of the embeddings after the model's vocab_size: "
            "without the tokenizer it is not known which of them exist already, or fit into padding rows"
        )
        draft.note("assumed", key, text)
        draft.reason("model.added_tokens", len(named), f"`{key}`", key=key)
    return len(named)


def _experts_implementation(draft: Draft, base: BaseModel) -> str:
    """axolotl `integrations/kernels/args.py` `check_experts_implementation`, if the kernels plugin is listed."""
    asked = draft.get("experts_implementation") or ""
    backend = str(draft.get("expert_backend") or "").lower()
    wanted = "scattermoe" if draft.get("use_scattermoe") or backend == "scattermoe" else ""
    wanted = "sonicmoe" if draft.get("use_sonicmoe") or backend == "sonicmoe" else wanted
    if "kernels" not in draft.plugins:
        if asked and is_moe(base):
            draft.reason_of_key("model.experts_implementation", asked, "experts_implementation")
        return asked
    chosen = asked or wanted or "eager"
    if asked in ("scattermoe", "sonicmoe") and asked != wanted:
        chosen = "eager"
        text = f"`experts_implementation: {asked}` needs `use_{asked}: true`; axolotl falls back to eager"
        draft.note("warning", "experts_implementation", text)
    if wanted:
        chosen = wanted
    if is_moe(base):
        text = "chosen by the keys of the kernels plugin" if wanted else "the kernels plugin's default"
        draft.reason("model.experts_implementation", chosen, text)
    return chosen
