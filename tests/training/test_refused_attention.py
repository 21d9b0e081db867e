"""A model that does not support the attention kernel: the run is refused, and the figures are with a kernel that it
supports."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.notes import RefusalNote
from axmem_trace.training.layer_folding import trace_run

DATA = {"datasets": [{"path": "x", "type": "alpaca"}], "output_dir": "./out"}


def make_config(tmp_path, model_type, shape, **keys):
    """A configuration of a base model of that type with two layers."""
    config = {"model_type": model_type, "torch_dtype": "bfloat16", "vocab_size": 96, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return {
        "base_model": str(tmp_path),
        "learning_rate": 1e-4,
        "micro_batch_size": 1,
        "sequence_len": 64,
        **DATA,
        **keys,
    }


FALCON = {"architectures": ["FalconForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GPTJ = {"architectures": ["GPTJForCausalLM"], "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}


@pytest.mark.parametrize(
    ("model_type", "shape", "asked", "used"),
    [
        ("falcon", FALCON, "xformers", "sdpa"),  # its own table of attention classes has no xformers
        ("gptj", GPTJ, "sdpa", "eager"),  # the transformers that axolotl pins has no SDPA for it
        ("gptj", GPTJ, "flex_attention", "eager"),  # neither flex attention nor SDPA
    ],
)
def test_the_figures_are_for_a_kernel_that_the_model_supports(tmp_path, model_type, shape, asked, used):
    refused = axmem_trace.estimate(make_config(tmp_path, model_type, shape, attn_implementation=asked), hub="never")
    (refusal,) = refused.refusals
    assert refusal.key == "attn_implementation"
    assert refusal.value == asked
    assert f"(the figures are with `{used}`)" in refusal.reason
    recipe = read_recipe(make_config(tmp_path, model_type, shape, attn_implementation=asked), hub="never")
    taken = trace_run(replace(recipe, attention=replace(recipe.attention, kernel=used)))
    assert not [note for note in taken.notes if isinstance(note, RefusalNote)]
    assert refused.peak.allocated_bytes == taken.ledger.peak().allocated_bytes
