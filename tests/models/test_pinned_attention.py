"""A model accepts the attention of axolotl's transformers, even if the installed release differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from support.whole_runs import make_recipe
from transformers import PreTrainedModel

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model
from axmem_trace.models.built import unwrapped
from axmem_trace.models.skeleton.pinned_attention import attention_support_of_pins
from axmem_trace.notes import Notes
from axmem_trace.tracing.patching import open_replacements

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": 8,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MULTIMODAL = {
    "gemma3": {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": _TEXT,
               "vision_config": {**_VISION, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
    "gemma4": {"architectures": ["Gemma4ForConditionalGeneration"],
               "text_config": {**_TEXT, "model_type": "gemma4_text", "global_head_dim": 32, "vocab_size_per_layer_input": 96,
                               "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
                               "layer_types": ["sliding_attention", "full_attention"]},
               "vision_config": {**_VISION, "model_type": "gemma4_vision", "head_dim": 16, "num_key_value_heads": 2}},
}  # fmt: skip
IS_PINNED = transformers.__version__ in ("5.16.1", "5.20.1")


def make(directory: Path, model_type: str, **keys):
    config = {"model_type": model_type, "torch_dtype": "bfloat16", **MULTIMODAL[model_type]}
    (directory / "config.json").write_text(json.dumps(config))
    return read_recipe(
        {
            "base_model": str(directory),
            "learning_rate": 1e-4,
            "micro_batch_size": 1,
            "sequence_len": 32,
            "datasets": [{"path": "x", "type": "alpaca"}],
            **keys,
        },
        hub="never",
    )


@pytest.mark.parametrize("model_type", sorted(MULTIMODAL))
def test_models_of_images_and_text_run_flash_attention(model_type, tmp_path):
    built = build_model(make(tmp_path, model_type, attn_implementation="flash_attention_2"))
    text = unwrapped(built.module).config.get_text_config()
    assert text._attn_implementation == "flash_attention_2"
    found = [note for note in built.notes if "the transformers that axolotl pins (5.20.1)" in note.text]
    assert bool(found) != IS_PINNED
    assert not open_replacements()


def test_gemma_4_with_hybrid_attention_is_estimated(tmp_path):
    keys = {"attn_implementation": "flash_attention_2", "gemma4_hybrid_attn_impl": True}
    build_model(make(tmp_path, "gemma4", **keys))


def test_without_a_request_the_pinned_release_decides(tmp_path):
    """transformers 5.24 has removed SDPA as the default of Gemma 2, and would keep every score of eager attention."""
    built = build_model(make_recipe(tmp_path, "gemma2"))
    assert unwrapped(built.module).config._attn_implementation == "sdpa"


def test_attention_of_a_later_release_is_refused_as_in_a_run(tmp_path):
    config = {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "rotary_dim": 8,
        "vocab_size": 96,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    keys = {
        "base_model": str(tmp_path),
        "learning_rate": 1e-4,
        "micro_batch_size": 1,
        "sequence_len": 32,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    built = build_model(read_recipe(keys, hub="never"))
    assert unwrapped(built.module).config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="can't build GPTJForCausalLM"):
        build_model(read_recipe({**keys, "attn_implementation": "sdpa"}, hub="never"))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_classes_are_restored_afterwards(name, tmp_path):
    kind = getattr(transformers, name)
    flags = [getattr(kind, flag) for flag in ("_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn")]
    before = dict(vars(kind)), dict(vars(PreTrainedModel))
    notes, recipe = Notes(), make_recipe(tmp_path, "llama", attn_implementation="sdpa")
    with attention_support_of_pins(kind, recipe, notes):
        assert kind._supports_sdpa
    assert (dict(vars(kind)), dict(vars(PreTrainedModel))) == before
    assert [getattr(kind, flag) for flag in ("_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn")] == flags
    assert bool(len(list(notes))) == (name.startswith("Gemma2") and not IS_PINNED)
