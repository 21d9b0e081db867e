"""A configuration of every model type, so small that a real training step on a CPU takes a second.

The configuration class gets small sizes. So the values that it derives from them (head sizes, patterns of layers) are
consistent. If the default of a size is not a plain number, the class derives it, or `shrunken_models.json` has it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "embedding_dim": 64, "dim": 64, "emb_dim": 64,
    "intermediate_size": 96, "n_inner": 96, "ffn_dim": 96, "d_ff": 96, "dff": 96, "dim_ff": 96, "d_inner": 96,
    "decoder_ffn_dim": 96, "encoder_ffn_dim": 96, "ffn_hidden_size": 96, "dense_intermediate_size": 96,
    "feed_forward_size": 96, "intermediate_size_mlp": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "expert_ffn_hidden_size": 32,
    "moe_shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "swa_num_attention_heads": 4, "index_n_heads": 4,
    "head_dim": 16, "dim_head": 16, "swa_head_dim": 16, "index_head_dim": 16, "attention_head_size": 16,
    "kv_channels": 16, "v_head_dim": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rotary_dim": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "o_lora_rank": 16, "query_pre_attn_scalar": 16, "global_head_dim": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_topk": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1, "zero_expert_num": 0,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "router_hidden_size": 16,
    "max_position_embeddings": 1024, "n_positions": 1024, "n_ctx": 1024, "max_seq_len": 1024, "context_length": 1024,
    "sliding_window": 16, "sliding_window_size": 16, "window_size": 16, "local_attention": 16,
    "attention_window_size": 16, "attention_chunk_size": 16, "keep_window_size": 16, "index_topk": 16,
    "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8, "mamba_d_ssm": 128, "chunk_size": 16,
    "mamba_chunk_size": 16, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_d_head": 16,
    "n_groups": 1, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "embedding_size": 64, "word_embed_proj_dim": 64, "lru_width": 64,
    "vocab_size_per_layer_input": 160, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "laurel_rank": 8, "adapter_rank": 8, "vocab_size": 160, "block_size": 16, "backbone_hidden_size": 64,
    "adapter_in_dim": 64, "adapter_input_size": 64, "adapter_out_dim": 64, "image_size": 32, "patch_size": 8,
    "num_mtp_layers": 0, "num_nextn_predict_layers": 0,
}  # fmt: skip
"""Small values of fields. A field gets its value if the default in the configuration class is a greater number."""
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")
_LAYERS = tuple(
    """
    num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_encoder_layers
    num_decoder_layers depth
    """.split()
)
_MOST_LAYERS = 4
_FIRST_SPECIAL_TOKEN = 100
CHANGES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "shrunken_models.json").read_text(encoding="utf-8")
)
"""Values by model type that no rule of this file gives."""


def write_small_model(model_type: str, directory: Path) -> str:
    """Writes a small `config.json` of the type there and returns the directory, as `base_model` needs it."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _as_saved(_make(CONFIG_MAPPING[model_type]))
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    config["architectures"] = [name if isinstance(name, str) else name[0]]
    config["torch_dtype"] = "bfloat16"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, default=str))
    return str(directory)


def count_positions(directory: str) -> int:
    """The maximum length of a row for the small model."""
    config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    return min((part[name] for part in parts for name in _POSITIONS if name in part), default=1 << 30)


def _as_saved(config: Any) -> dict[str, Any]:
    """As `save_pretrained` would write it."""
    saved: dict[str, Any] = json.loads(config.to_json_string())
    return saved


def _make(config_class: Any) -> Any:
    changes = CHANGES.get(config_class.model_type, {})
    usual = _as_usual(config_class, changes)
    parts = {name: type(getattr(usual, name)) for name in config_class.sub_configs if getattr(usual, name, None)}
    values = {name: _as_saved(_make(part)) for name, part in parts.items()}
    values |= dict(_small_numbers(config_class))
    values |= _fewer_layers(config_class, usual)
    for name, value in copy.deepcopy(changes).items():
        values[name] = values[name] | value if name in parts else value
    return config_class(**values)


def _as_usual(config_class: Any, changes: dict[str, Any]) -> Any:
    """A configuration with all defaults. A class without defaults for its parts (`musicgen`) gets the parts of the
    changes."""
    parts = {name: copy.deepcopy(changes[name]) for name in config_class.sub_configs if name in changes}
    return config_class(**parts)


def _small_numbers(config_class: Any) -> Iterator[tuple[str, Any]]:
    special = _FIRST_SPECIAL_TOKEN
    heads = getattr(config_class, "num_attention_heads", None)  # the class's own default; an instance may have several
    for field in dataclasses.fields(config_class):
        name, value = field.name, field.default  # not the value that the class derives from a None
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name.endswith(("token_id", "token_index")) and value >= SMALL["vocab_size"]:
            yield name, special
            special += 1
        elif name.endswith("num_key_value_heads"):
            yield name, _key_value_heads(heads, value)
        elif name in SMALL:
            yield name, min(SMALL[name], value)


def _key_value_heads(heads: Any, value: int) -> int:
    """As many as query heads, one for all of them, or one for every two, as in the original."""
    return 1 if value == 1 else 4 if not isinstance(heads, int) or value >= heads else 2


def _fewer_layers(config_class: Any, usual: Any) -> dict[str, Any]:
    """One layer of each kind, and at least two layers. Lists with one entry per layer are cut in the same way."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    counts = {name: getattr(usual, name) for name in _LAYERS if isinstance(getattr(usual, name, None), int)}
    lists = {
        name: value
        for name in fields
        if isinstance(value := vars(usual).get(name), list) and len(value) in counts.values() and len(value) > 2
    }
    kinds: dict[Any, int] = {}
    for layer, kind in enumerate(zip(*lists.values(), strict=False)):
        kinds.setdefault(str(kind), layer)
    picked = sorted(kinds.values())[:_MOST_LAYERS]
    picked = picked if len(picked) > 1 else [0, 1]
    few = {name: len(picked) for name in counts if name in fields}
    return few | {name: [value[layer] for layer in picked] for name, value in lists.items()}
