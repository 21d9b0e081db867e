"""Llama 4 with images can be estimated with every release, and afterwards the model's classes are restored."""

from __future__ import annotations

from support.shrunken_models import write_small_model

import axmem_trace


def test_llama_4_of_images_and_text_is_estimated(tmp_path):
    from transformers.models.llama4 import modeling_llama4

    config = {
        "base_model": write_small_model("llama4", tmp_path),
        "sequence_len": 32,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "optimizer": "adamw_torch_fused",
        "gradient_checkpointing": True,
    }
    before = dict(vars(modeling_llama4.MoeCausalLMOutputWithPast))
    report = axmem_trace.estimate(config, hub="never")
    # AdamW keeps two states of each gradient's size, and a counter of 4 bytes for each tensor
    assert report.resident.gradients > 0
    assert 0 <= report.resident.optimizer - 2 * report.resident.gradients < 4 * 100
    assert dict(vars(modeling_llama4.MoeCausalLMOutputWithPast)) == before
