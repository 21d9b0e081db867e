"""`config.json` contents of two-layer models of many families: small enough to run for real on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
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
_MOE: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": model_type, "architectures": [architecture], **changes}


TINY: dict[str, dict[str, Any]] = {
    "llama": _config("llama", "LlamaForCausalLM"),
    "mistral": _config("mistral", "MistralForCausalLM", sliding_window=8),
    "qwen2": _config("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen3": _config("qwen3", "Qwen3ForCausalLM", head_dim=16),
    "gemma2": _config("gemma2", "Gemma2ForCausalLM", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": _config("gemma3_text", "Gemma3ForCausalLM", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "phi3": _config("phi3", "Phi3ForCausalLM", num_key_value_heads=4),
    "falcon": {
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "vocab_size": 96, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True, "parallel_attn": True, "bias": False,
        "alibi": False, "new_decoder_architecture": False, "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": _config("gpt_neox", "GPTNeoXForCausalLM", rotary_pct=0.25),
    "mixtral": _config("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2,
                       sliding_window=None),
    "qwen3_moe": _config("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=8, norm_topk_prob=True, **_MOE),
}  # fmt: skip
"""By a short name of the family."""


def write_tiny_model(family: str, directory: Path, **changes: Any) -> str:
    """Writes the family's `config.json` there, with the changes, and returns the directory, as `base_model` needs it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**TINY[family], **changes}))
    return str(directory)
