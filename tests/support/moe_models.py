"""Two-layer mixtures of experts of many families, small enough to run for real on a CPU."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
_LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": model_type, "architectures": [architecture], **changes}


MOE: dict[str, dict[str, Any]] = {
    "mixtral": _config("mixtral", "MixtralForCausalLM", sliding_window=None, **_LOCAL),
    "qwen2_moe": _config("qwen2_moe", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=40, **_EXPERTS),
    "qwen3_moe": _config("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=8, norm_topk_prob=True, **_EXPERTS),
    "olmoe": _config("olmoe", "OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2),
    "granitemoe": _config("granitemoe", "GraniteMoeForCausalLM", **_LOCAL),
    "deepseek_v3": _config(
        "deepseek_v3", "DeepseekV3ForCausalLM", num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, first_k_dense_replace=1, moe_intermediate_size=24,
        n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, n_group=2, topk_group=1,
    ),
    "gpt_oss": _config("gpt_oss", "GptOssForCausalLM", head_dim=8, sliding_window=8, **_LOCAL),
    "llama4": _config(
        "llama4_text", "Llama4ForCausalLM", head_dim=8, intermediate_size_mlp=40, interleave_moe_layer_step=1,
        attention_chunk_size=64, num_local_experts=4, num_experts_per_tok=1,
    ),
    "dbrx": {
        "model_type": "dbrx", "architectures": ["DbrxForCausalLM"], "d_model": 32, "n_heads": 4, "n_layers": 2,
        "max_seq_len": 128, "vocab_size": 96, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        "attn_config": {"model_type": "", "kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"model_type": "", "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "phimoe": _config("phimoe", "PhimoeForCausalLM", **_LOCAL),
    "minimax_m2": _config("minimax_m2", "MiniMaxM2ForCausalLM", head_dim=8, rotary_dim=8, **_LOCAL),
    "ernie4_5_moe": _config(
        "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", moe_intermediate_size=24, moe_num_experts=4, moe_k=2,
        moe_num_shared_experts=1, moe_layer_start_index=1,
    ),
}  # fmt: skip
"""By a short name of the family: `config.json` contents."""
