"""`config.json` contents of tiny multimodal models: two layers of tower and text, small enough for a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "num_channels": 3,
}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "num_heads": 4,
    "in_channels": 3,
    "in_chans": 3,
    "patch_size": 7,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "intermediate_size": 48,
}
_QWEN_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
_GLM_IDS = {
    "image_token_id": 90,
    "video_token_id": 91,
    "image_start_token_id": 92,
    "image_end_token_id": 93,
    "video_start_token_id": 94,
    "video_end_token_id": 95,
}


def _model(
    model_type: str, architecture: str, text: dict[str, Any], vision: dict[str, Any], **rest: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "torch_dtype": "bfloat16",
        "text_config": {**_TEXT, **text},
        "vision_config": vision,
        **rest,
    }


MULTIMODAL: dict[str, dict[str, Any]] = {
    "llava": _model("llava", "LlavaForConditionalGeneration", {"model_type": "llama"},
                    {**_VIT, "model_type": "clip_vision_model", "projection_dim": 32}, image_token_index=90),
    "llava_next": _model("llava_next", "LlavaNextForConditionalGeneration", {"model_type": "llama"},
                         {**_VIT, "model_type": "clip_vision_model", "projection_dim": 32}, image_token_index=90,
                         image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]),
    "llava_onevision": _model("llava_onevision", "LlavaOnevisionForConditionalGeneration", {"model_type": "qwen2"},
                              {**_VIT, "model_type": "siglip_vision_model", "vision_use_head": False},
                              image_token_index=90, video_token_index=91, vision_feature_select_strategy="full",
                              image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]),
    "pixtral": _model("llava", "LlavaForConditionalGeneration", {"model_type": "mistral"},
                      {**_VIT, "model_type": "pixtral", "head_dim": 8}, image_token_index=90,
                      vision_feature_layer=-1, vision_feature_select_strategy="full"),
    "mistral3": _model("mistral3", "Mistral3ForConditionalGeneration", {"model_type": "mistral"},
                       {**_VIT, "model_type": "pixtral", "head_dim": 8}, image_token_index=10, spatial_merge_size=2),
    "qwen2_vl": _model("qwen2_vl", "Qwen2VLForConditionalGeneration",
                       {"model_type": "qwen2_vl_text", "rope_scaling": _MROPE, "rope_parameters": _MROPE},
                       {**_QWEN_VISION, "model_type": "qwen2_vl"}, **_QWEN_IDS),
    "qwen2_5_vl": _model("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration",
                         {"model_type": "qwen2_5_vl_text", "rope_scaling": _MROPE, "rope_parameters": _MROPE},
                         {**_QWEN_VISION, "model_type": "qwen2_5_vl", "out_hidden_size": 32, "window_size": 28,
                          "fullatt_block_indexes": [1]}, **_QWEN_IDS),
    "qwen3_vl": _model("qwen3_vl", "Qwen3VLForConditionalGeneration",
                       {"model_type": "qwen3_vl_text", "rope_scaling": _MROPE, "rope_parameters": _MROPE},
                       {**_QWEN_VISION, "model_type": "qwen3_vl", "out_hidden_size": 32,
                        "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, **_QWEN_IDS),
    "glm4v": _model("glm4v", "Glm4vForConditionalGeneration",
                    {"model_type": "glm4v_text", "partial_rotary_factor": 1.0, "rope_parameters": _MROPE},
                    {**_QWEN_VISION, "model_type": "glm4v", "out_hidden_size": 32, "image_size": 28}, **_GLM_IDS),
    "gemma3": _model("gemma3", "Gemma3ForConditionalGeneration",
                     {"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 8},
                     {**_VIT, "model_type": "siglip_vision_model", "vision_use_head": False}, image_token_index=90,
                     boi_token_index=91, eoi_token_index=92, mm_tokens_per_image=4),
    "gemma4": _model("gemma4", "Gemma4ForConditionalGeneration",
                     {"model_type": "gemma4_text", "sliding_window": 16, "global_head_dim": 8, "num_kv_shared_layers": 0,
                      "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8,
                      "layer_types": ["sliding_attention", "full_attention"]},
                     {"model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                      "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4,
                      "pooling_kernel_size": 2, "position_embedding_size": 64, "default_output_length": 70},
                     image_token_id=90, video_token_id=91, audio_token_id=92, audio_config=None),
    "gemma4_unified": _model("gemma4_unified", "Gemma4UnifiedForConditionalGeneration",
                             {"model_type": "gemma4_unified_text", "sliding_window": 16, "global_head_dim": 8,
                              "layer_types": ["sliding_attention", "full_attention"]},
                             {"model_type": "gemma4_unified_vision", "patch_size": 4, "pooling_kernel_size": 2,
                              "mm_embed_dim": 32, "output_proj_dims": 32},
                             image_token_id=90, video_token_id=91, audio_token_id=92, audio_config=None),
    "smolvlm": _model("smolvlm", "SmolVLMForConditionalGeneration", {"model_type": "llama"},
                      {**_VIT, "model_type": "smolvlm_vision"}, image_token_id=90, scale_factor=2),
    "idefics3": _model("idefics3", "Idefics3ForConditionalGeneration", {"model_type": "llama"},
                       {**_VIT, "model_type": "idefics3_vision"}, image_token_id=90, scale_factor=2),
    "internvl": _model("internvl", "InternVLForConditionalGeneration", {"model_type": "qwen2"},
                       {**_VIT, "model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [7, 7]},
                       image_token_id=90, downsample_ratio=0.5),
    "llama4": _model("llama4", "Llama4ForConditionalGeneration",
                     {"model_type": "llama4_text", "intermediate_size_mlp": 48, "num_local_experts": 2,
                      "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "attention_chunk_size": 64},
                     {**_VIT, "model_type": "llama4_vision_model", "vision_output_dim": 32, "projector_input_dim": 32,
                      "projector_output_dim": 32, "pixel_shuffle_ratio": 0.5, "intermediate_size": 128},
                     image_token_index=90, boi_token_index=91, eoi_token_index=92),
    "mllama": _model("mllama", "MllamaForConditionalGeneration",
                     {"model_type": "mllama_text_model", "cross_attention_layers": [1], "num_hidden_layers": 2},
                     {"model_type": "mllama_vision_model", "hidden_size": 32, "intermediate_size": 48,
                      "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4, "image_size": 28,
                      "patch_size": 7, "vision_output_dim": 64, "intermediate_layers_indices": [1],
                      "max_num_tiles": 4}, image_token_index=96),
    "paligemma": _model("paligemma", "PaliGemmaForConditionalGeneration", {"model_type": "gemma"},
                        {**_VIT, "model_type": "siglip_vision_model", "projection_dim": 32, "vision_use_head": False},
                        image_token_index=90, projection_dim=32, hidden_size=32),
    "lfm2_vl": _model("lfm2_vl", "Lfm2VlForConditionalGeneration",
                      {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
                      {**_VIT, "model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 16,
                       "vision_use_head": False}, image_token_id=90, downsample_factor=2, projector_hidden_size=32),
}  # fmt: skip
"""By a short name of the family."""
VOXTRAL: dict[str, Any] = {
    "model_type": "voxtral",
    "architectures": ["VoxtralForConditionalGeneration"],
    "torch_dtype": "bfloat16",
    "text_config": {**_TEXT, "model_type": "llama"},
    "audio_token_id": 24,
    "audio_config": {
        "model_type": "voxtral_encoder",
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_mel_bins": 8,
        "max_source_positions": 16,
    },
}


def write_multimodal_model(family: str, directory: Path) -> str:
    """Writes the family's `config.json` there and returns the directory, as `base_model` needs it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = VOXTRAL if family == "voxtral" else MULTIMODAL[family]
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)
