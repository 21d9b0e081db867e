"""A whole training step with LoRA works for every `quantization_config` in the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.quantised_models import LORA, SIZES
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.catalogue import table

KINDS: dict[str, dict[str, Any]] = {
    name: changes["quantization_config"]
    for name, changes in json.loads((Path(table.__file__).parent / "aliases.json").read_text())["kinds"].items()
    if changes.get("quantization_config")
}
LLM_INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
TENSOR_WISE = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}


@pytest.mark.parametrize("gpu", ["A100", "H100"])
@pytest.mark.parametrize("own", [*KINDS.values(), LLM_INT8, TENSOR_WISE], ids=[*KINDS, "int8", "fp8, one scale"])
def test_a_step_is_recorded(own: dict[str, Any], gpu: str, tmp_path: Path):
    config = {
        "base_model": write_tiny_model("llama", tmp_path, **SIZES, quantization_config=own),
        "sequence_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "gptq": own["quant_method"] == "gptq",
        **LORA,
    }
    report = axmem_trace.estimate(config, gpu=gpu)
    assert report.peak.allocated_bytes > report.resident.weights > 1_048_576  # more than embedding and head
    assert report.resident.gradients == 8 * (256 + 256) * 4 * 2  # rank 8 on q_proj of two layers, in fp32
