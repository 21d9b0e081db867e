"""Reward models get pairs, and classifiers have a padding token."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace import estimate
from axmem_trace.config import read_recipe

KEYS = {
    "sequence_len": 32,
    "micro_batch_size": 2,
    "learning_rate": 1e-4,
    "optimizer": "adamw_torch",
    "datasets": [{"path": "x", "type": "bradley_terry.chat_template"}],
}
REWARD = {"reward_model": True, "type_of_model": "AutoModelForSequenceClassification", "num_labels": 1}


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_has_the_chosen_and_the_rejected_text_of_each_pair(tmp_path, packing):
    """trl 1.9 `DataCollatorForPreference.torch_call`: `input_ids = chosen_ids + rejected_ids`; axolotl's builder passes
    it to the trainer with any value of `sample_packing`."""
    keys = {**KEYS, **REWARD, "sample_packing": packing, "eval_batch_size": 3, "val_set_size": 0.1, "eval_steps": 5}
    recipe = read_recipe({**keys, "base_model": write_tiny_model("llama", tmp_path)}, hub="never")
    # pad_to_sequence_len is on for rewards: 32 tokens are padded to 64 * ceil(32 / 64) (`pad_to_multiple_of`)
    assert (recipe.batch.rows, recipe.batch.row_tokens, recipe.batch.packed) == (2 * 2, 64, False)
    assert (recipe.evaluation.rows, recipe.evaluation.packed) == (2 * 3, False)
    assert "rejected" in recipe.reasons["batch.rows"].text


@pytest.mark.parametrize("more", [{}, {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}])
def test_several_rows_need_a_padding_token_that_the_trainer_sets(tmp_path, more: dict[str, Any]):
    """transformers `modeling_layers.py` `GenericForSequenceClassification.forward` refuses several rows without one."""
    config = {**KEYS, **REWARD, **more, "base_model": write_tiny_model("llama", tmp_path)}
    report = estimate(config, hub="never")
    assert any(module.class_name.endswith("ForSequenceClassification") for module in report.modules)
    assert report.resident.gradients > 0
