#!/usr/bin/env python3
"""Traces every causal language model of the installed transformers, cut to two layers, and writes a table.

For each type of `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`: a full fine-tune and a LoRA run on meta, and the CPU oracle (the
same step for real must allocate the same, byte for byte). Where one of them can't be, the table has the reason.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "architectures" / "table.json"
TWO = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_blocks")
SMALL = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "embedding_dim": 64, "intermediate_size": 96, "n_inner": 96,
    "ffn_dim": 96, "d_ff": 96, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "head_dim": 16, "vocab_size": 160,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128, "sliding_window": 16,
    "attention_window": 16, "state_size": 8, "mamba_d_state": 8, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "embedding_size": 64,
    "word_embed_proj_dim": 64, "rotary_dim": 8, "lru_width": 64, "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "expert_ffn_hidden_size": 32, "zero_expert_num": 0,
}  # fmt: skip
"""What is made small where a configuration has it."""
TOKENS = 32
KEYS = {
    "sequence_len": TOKENS, "micro_batch_size": 1, "learning_rate": 1e-4, "optimizer": "adamw_torch",
    "attn_implementation": "eager", "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
    "datasets": [{"path": "x", "type": "alpaca"}],
}  # fmt: skip
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}


def list_types() -> list[str]:
    """Every type of a causal language model that the installed transformers knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def write_small_model(model_type: str, directory: Path) -> str:
    """Writes a shrunken `config.json` of the type there and returns the directory."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = AutoConfig.for_model(model_type).to_dict()
    _shrink(config)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    config["architectures"] = [name if isinstance(name, str) else name[0]]
    config["torch_dtype"] = "bfloat16"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, default=str))
    return str(directory)


def _shrink(config: dict[str, Any]) -> None:
    for name, value in list(config.items()):
        if isinstance(value, dict) and "model_type" in value:
            _shrink(value)
        elif name in TWO and isinstance(value, int):
            config[name] = 2
        elif name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            config[name] = min(SMALL[name], value) if value > 0 else value
        elif name.endswith(("layer_types", "layers_block_type")) and isinstance(value, list):
            config[name] = value[:2]
        elif name.endswith("token_id") and isinstance(value, int) and value >= 160:
            config[name] = 1
    heads = config.get("num_attention_heads")
    if isinstance(config.get("num_key_value_heads"), int) and heads:
        config["num_key_value_heads"] = heads if config["num_key_value_heads"] >= heads else max(1, heads // 2)


def trace(model_type: str) -> dict[str, str]:
    """`full`, `lora` and `oracle`: `yes`, or the reason why not."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as home:
        try:
            base = write_small_model(model_type, Path(home))
        except Exception as error:
            return dict.fromkeys(("full", "lora", "oracle"), f"no configuration of its own: {_say(error)}")
        for name, keys in (("full", {}), ("lora", LORA)):
            found[name] = _attempt(lambda keys=keys: _estimate({**KEYS, "base_model": base, **keys}))
        found["oracle"] = _attempt(lambda: _oracle({**KEYS, "base_model": base, "bf16": False}))
    return found


def _attempt(step: Any) -> str:
    try:
        step()
    except Exception as error:
        return _say(error)
    return "yes"


def _say(error: Exception) -> str:
    text = re.sub(r"\S*tmp\S*", "the small model", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:160]}"


def _estimate(config: dict[str, Any]) -> None:
    import axmem_trace

    report = axmem_trace.estimate(config, hub="never")
    assert report.phases["step_2"].allocated_bytes > report.after_load.allocated_bytes
    assert report.resident.gradients > 0


def _oracle(config: dict[str, Any]) -> None:
    """In fp32, as the CPU's bf16 kernels keep other statistics than meta and CUDA."""
    on_meta, for_real = (_record(config, device) for device in ("meta", "cpu"))
    only_meta, only_real = on_meta - for_real, for_real - on_meta
    assert not only_meta, f"{sum(only_meta.values())} more on meta, such as {next(iter(only_meta))}"
    assert not only_real, f"{sum(only_real.values())} more on the CPU, such as {next(iter(only_real))}"


def _record(config: dict[str, Any], device: str) -> Counter[Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    from oracle import record_step

    chosen = [each for each in record_step(config, device).allocations if each.step <= 1 and each.phase != "optimizer"]
    return Counter((each.nbytes, each.phase, each.op, each.role, each.kept) for each in chosen)


def read_table() -> dict[str, dict[str, str]]:
    """The table as committed."""
    table: dict[str, dict[str, str]] = json.loads(TABLE.read_text(encoding="utf-8"))["types"]
    return table


def read_release() -> str:
    """The transformers that the table is of."""
    return str(json.loads(TABLE.read_text(encoding="utf-8"))["transformers"])


def make_rows(types: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """A row for each type, told as it is made."""
    for number, model_type in enumerate(types, 1):
        row = trace(model_type)
        print(f"{number}/{len(types)} {model_type}: {row}", file=sys.stderr, flush=True)
        yield model_type, row


def main() -> int:
    """Traces the types named, or all, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="only these, written beside what the table has of the others")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    table = read_table() if options.types and TABLE.exists() else {}
    table.update(make_rows(options.types or list_types()))
    content = {"transformers": transformers.__version__, "types": dict(sorted(table.items()))}
    TABLE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for column in ("full", "lora", "oracle"):
        print(f"{column}: {sum(row[column] == 'yes' for row in table.values())} of {len(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
