"""`config.json` contents of tiny state-space, hybrid and linear-attention models."""

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
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
_MAMBA2: dict[str, Any] = {
    "n_groups": 1,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 16,
    "expand": 2,
    "chunk_size": 32,
}
_MAMBA2_PREFIXED: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 32,
    "mamba_d_conv": 4,
}
_LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 24,
}


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": model_type, "architectures": [architecture], **changes}


HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba": _config("mamba", "MambaForCausalLM", state_size=4, time_step_rank=4, num_layers=2),
    "mamba2": _config("mamba2", "Mamba2ForCausalLM", **_MAMBA2),
    "falcon_mamba": _config("falcon_mamba", "FalconMambaForCausalLM", state_size=4, time_step_rank=4),
    "jamba": _config("jamba", "JambaForCausalLM", mamba_d_state=4, mamba_dt_rank=4, num_experts=1,
                     num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1),
    "bamba": _config("bamba", "BambaForCausalLM", attn_layer_indices=[1], **_MAMBA2_PREFIXED),
    "zamba": _config("zamba", "ZambaForCausalLM", layers_block_type=["mamba", "hybrid"] * 2, n_mamba_heads=2,
                     mamba_d_state=4, mamba_dt_rank=4, num_hidden_layers=4, attention_hidden_size=64,
                     attention_head_dim=16),
    "zamba2": _config("zamba2", "Zamba2ForCausalLM", layers_block_type=["mamba", "hybrid"], mamba_d_state=16,
                      mamba_headdim=8, n_mamba_heads=8, mamba_ngroups=1, chunk_size=32, attention_head_dim=16,
                      num_mem_blocks=1),
    "falcon_h1": _config("falcon_h1", "FalconH1ForCausalLM", mamba_d_ssm=64, **_MAMBA2_PREFIXED),
    "granitemoehybrid": _config("granitemoehybrid", "GraniteMoeHybridForCausalLM", num_local_experts=4,
                                num_experts_per_tok=2, shared_intermediate_size=48,
                                layer_types=["mamba", "attention"], **_MAMBA2_PREFIXED),
    "nemotron_h": _config("nemotron_h", "NemotronHForCausalLM", hybrid_override_pattern="M*", mamba_num_heads=8,
                          mamba_head_dim=8, ssm_state_size=16, n_groups=1, chunk_size=32, head_dim=8),
    "lfm2": _config("lfm2", "Lfm2ForCausalLM", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "qwen3_next": _config("qwen3_next", "Qwen3NextForCausalLM", **_LINEAR, **_EXPERTS),
    "qwen3_5": _config("qwen3_5_text", "Qwen3_5ForCausalLM", **_LINEAR),
    "qwen3_5_moe": _config("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", **_LINEAR, **_EXPERTS),
    "olmo_hybrid": _config("olmo_hybrid", "OlmoHybridForCausalLM", **_LINEAR),
    "rwkv": _config("rwkv", "RwkvForCausalLM", context_length=1024, attention_hidden_size=32),
    "xlstm": _config("xlstm", "xLSTMForCausalLM", num_heads=2, num_blocks=2),
    "recurrent_gemma": _config("recurrent_gemma", "RecurrentGemmaForCausalLM", num_key_value_heads=1, lru_width=32,
                               num_hidden_layers=3, attention_window_size=64, head_dim=8),
    "minimax": _config("minimax", "MiniMaxForCausalLM", layer_types=["linear_attention", "full_attention"],
                       num_local_experts=4, num_experts_per_tok=2, head_dim=8, block_size=64),
}  # fmt: skip
"""By `model_type`, or the family's short name."""


def write_hybrid(family: str, directory: Path) -> str:
    """Writes the family's `config.json` there and returns the directory, as `base_model` needs it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(HYBRIDS[family]))
    return str(directory)
