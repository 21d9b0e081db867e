"""A class without SDPA refuses it if the configuration names it; if it is only transformers' default, eager is used
instead."""

from __future__ import annotations

from typing import Any

import pytest

from axmem_trace import estimate

TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _estimate(**keys: Any) -> Any:
    config = {
        "base_model": "axolotl-ai-co/gpt-oss-120b-dequantized",
        "overrides_of_model_config": TINY,
        "bf16": True,
        "sequence_len": 64,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.0001,
        **keys,
    }
    return estimate(config, hub="never", gpu="A100")


@pytest.mark.parametrize("keys", [{"attn_implementation": "sdpa"}, {"sdp_attention": True}])
def test_a_class_without_sdpa_refuses_it_by_name(keys):
    """modeling_gpt_oss.py `_supports_sdpa = False`; modeling_utils.py `get_correct_attn_implementation` raises."""
    refused = _estimate(**keys)
    found = [each for each in refused.refusals if "GptOssForCausalLM does not support an attention" in each.reason]
    assert [each.key for each in found] == list(keys)
    assert "eager" in found[0].remedy
    assert "(the figures are with `eager`)" in found[0].reason


def test_without_the_key_it_is_eager():
    left_out, eager = _estimate(), _estimate(attn_implementation="eager")
    assert left_out.buckets == eager.buckets
