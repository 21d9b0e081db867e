"""The modules that Liger replaces in models with several parts, which the table alone does not show.

The sets below are the results of liger-kernel 0.8.1's own `apply_liger_kernel_to_*` on the same tiny models. (These
functions run without triton, because they only replace names.)
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.kernel_recording import gpu_recording, site_of
from support.multimodal_models import _TEXT, _VIT

from axmem_trace.config import read_recipe
from axmem_trace.kernels.liger.install import install_liger
from axmem_trace.models import build_model

LAYERS = ("liger_rope", "liger_rms_norm", "liger_layer_norm", "liger_glu_activation")
_SIGLIP = {**_VIT, "model_type": "siglip_vision_model", "vision_use_head": False}


def replaced(config: dict[str, Any], directory: Path) -> Counter[str]:
    """How many modules have another forward, by the last part of the module's name."""
    (directory / "config.json").write_text(json.dumps(config))
    recipe = read_recipe(
        {
            "base_model": str(directory),
            "sequence_len": 64,
            "micro_batch_size": 1,
            "num_epochs": 1,
            "learning_rate": 1e-4,
            "optimizer": "adamw_torch",
            "bf16": True,
            "datasets": [{"path": "x", "type": "alpaca"}],
            "plugins": ["axolotl.integrations.liger.LigerPlugin"],
            **dict.fromkeys(LAYERS, True),
        },
        hub="never",
    )
    module = build_model(recipe).module
    with site_of(gpu_recording(), module, recipe) as site:
        install_liger(site)
        named = module.named_modules()
        return Counter(name.rpartition(".")[2] for name, each in named if "forward" in vars(each))


@pytest.mark.parametrize(
    ("text", "norms"),
    [
        ({"model_type": "gemma"}, {"input_layernorm": 2, "post_attention_layernorm": 2, "norm": 1}),
        (
            {"model_type": "gemma2"},
            {
                "input_layernorm": 2,
                "post_attention_layernorm": 2,
                "pre_feedforward_layernorm": 2,
                "post_feedforward_layernorm": 2,
                "norm": 1,
            },
        ),
    ],
    ids=["PaliGemma", "PaliGemma 2"],
)
def test_paligemma_gets_its_text_model_s_kernels(text: dict[str, Any], norms: dict[str, int], tmp_path: Path) -> None:
    # in the tower: two LayerNorms in each of two layers, and one after them
    config = {
        "model_type": "paligemma",
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "text_config": {**_TEXT, **text},
        "vision_config": {**_SIGLIP, "projection_dim": 32},
        "image_token_index": 90,
        "projection_dim": 32,
        "hidden_size": 32,
    }
    assert replaced(config, tmp_path) == {**norms, "mlp": 2, "layer_norm1": 2, "layer_norm2": 2, "post_layernorm": 1}


def test_internvl_keeps_the_norms_of_its_table(tmp_path: Path) -> None:
    # NORM2FN got torch's LayerNorm at import; the projector's first module is also a LayerNorm, which is made by its
    # name
    config = {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": {**_VIT, "model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [7, 7]},
        "image_token_id": 90,
        "downsample_ratio": 0.5,
    }
    assert replaced(config, tmp_path) == {"layer_norm": 1}
