"""What GPTQ's two kernels keep of a weight between forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.one_layer import run_layer
from support.tiny_models import write_tiny_model
from support.whole_runs import make_config

import axmem_trace
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import NEVER
from axmem_trace.models.quantisation.packed_linear import PackedFormat, PackedLinear

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024, "num_key_value_heads": 4}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["q_proj"]}


def estimate(directory: Path, kernel: str):
    own = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    model = write_tiny_model("llama", directory, **SIZES, quantization_config=own)
    keys = make_config(directory, base_model=model, sequence_len=64, fp16=True, bf16=False, gptq=True, **LORA)
    return axmem_trace.estimate(keys, assumptions=[f"gptq_kernel={kernel}"], hub="never")


def test_the_torch_kernel_keeps_the_unpacked_weight_and_the_triton_kernel_the_packed_one(tmp_path: Path):
    """A layer has q, k, v, o of 256 x 256 and gate, up, down of 256 x 512, with 2 bytes a weight unpacked:
    (4 * 65,536 + 3 * 131,072) * 2 = 1,310,720, and the gradient passes all of them in both layers, since
    axolotl lets the embedding's output require one."""
    torch, triton = (estimate(tmp_path, kernel) for kernel in ("torch", "triton"))
    kept = [report.phases["step_2"].phases["forward"].end_bytes for report in (torch, triton)]
    assert kept[0] - kept[1] == 2 * 1_310_720
    assert torch.resident.weights == triton.resident.weights


def test_the_triton_kernel_unpacks_again_in_backward():
    """100 tokens of 256 features to 512: the output is kept, 100 * 512 * 2 = 102,400. In backward there are, in addition to
    the output's gradient (102,400): the weight, 256 * 512 * 2 = 262,144, and the input's, 100 * 256 * 2 = 51,200."""
    packed = PackedFormat("gptq", 4, 128, "triton")
    with torch.device("meta"):
        layer = PackedLinear(256, 512, bias=False, packed=packed)
    assert run_layer(layer, 100, 256, 512, dtype=torch.float16).kept == 102_400
    run = run_layer(layer, 100, 256, 512, backward=True, dtype=torch.float16)
    mine = [each for each in run.ledger.allocations if each.op != "cuBLAS" and each.phase == "backward"]
    assert sorted(each.nbytes for each in mine) == [51_200, 102_400, 262_144]
    weight = max(mine, key=lambda each: each.nbytes)
    assert weight.freed_tick != NEVER


def test_another_kernel_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="gptq_kernel"):
        estimate(tmp_path, "marlin")
