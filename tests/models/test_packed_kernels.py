"""The part of a weight that GPTQ's two kernels keep between forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.one_layer import run_layer
from support.tiny_models import write_tiny_model
from support.whole_runs import make_config

import axmem_trace
from axmem_trace.errors import ConfigError
from axmem_trace.ledger import NEVER
from axmem_trace.models.quantisation.packed_linear import PackedFormat, PackedLinear
from axmem_trace.models.walk import _logical_elements

SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024, "num_key_value_heads": 4}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["q_proj"]}


FSDP1 = {"fsdp_version": 1, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


def estimate(directory: Path, kernel: str, *, num_gpus: int = 0, gptq_weights: str = "buffers", **more: Any):
    own = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    model = write_tiny_model("llama", directory, **SIZES, quantization_config=own)
    keys = make_config(directory, base_model=model, sequence_len=64, fp16=True, bf16=False, gptq=True, **LORA, **more)
    assumptions = {"gptq_kernel": kernel, "gptq_weights": gptq_weights}
    return axmem_trace.estimate(keys, assumptions=assumptions, num_gpus=num_gpus, hub="never", axolotl="0.19.0")


def test_the_torch_kernel_keeps_the_unpacked_weight_and_the_triton_kernel_the_packed_one(tmp_path: Path):
    """A layer has q, k, v, o of 256 x 256 and gate, up, down of 256 x 512, with 2 bytes for each unpacked weight: (4 *
    65,536 + 3 * 131,072) * 2 = 1,310,720. The gradient passes through all of them in both layers, because axolotl makes
    the embedding's output require a gradient."""
    torch, triton = (estimate(tmp_path, kernel) for kernel in ("torch", "triton"))
    kept = [report.phases["step_2"].phases["forward"].end_bytes for report in (torch, triton)]
    assert kept[0] - kept[1] == 2 * 1_310_720
    assert torch.resident.weights == triton.resident.weights


def test_the_triton_kernel_unpacks_again_in_backward():
    """100 tokens, from 256 to 512 features: the output is kept, 100 * 512 * 2 = 102,400. Backward has the output's
    gradient (102,400), the weight, 256 * 512 * 2 = 262,144, and the input's gradient, 100 * 256 * 2 = 51,200."""
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


def test_packed_words_become_parameters_of_the_same_bytes():
    """256 x 512 weights of 4 bits are 32 rows of 512 words, and 2 groups have 64 words each: as fp16 twice as many columns.
    The layer allocates what it allocates with buffers, and its parameters represent the same 131,072 weights."""
    with torch.device("meta"):
        layer = PackedLinear(256, 512, bias=False, packed=PackedFormat("gptq", 4, 128, "triton", torch.float16))
    shapes = {name: (tuple(each.shape), each.dtype, each.requires_grad) for name, each in layer.named_parameters()}
    assert shapes == {"qweight": ((32, 1024), torch.float16, False), "qzeros": ((2, 128), torch.float16, False)}
    assert [_logical_elements(layer, name, each) for name, each in layer.named_parameters()] == [256 * 512, 0]
    assert run_layer(layer, 100, 256, 512, dtype=torch.float16).kept == 102_400


def test_fsdp_divides_packed_words_that_are_parameters(tmp_path: Path):
    """Two layers, each with 4 * 65,536 + 3 * 131,072 = 655,360 weights of 4 bits: 327,680 bytes of words, and a fp16 scale
    and 4 bits of zero for each group of 128: 655,360 / 128 * 0.5 = 2,560 bytes of zeros. As buffers they are whole on both
    GPUs, as parameters a half is."""
    buffers, parameters = (
        estimate(tmp_path, "triton", num_gpus=2, gptq_weights=kind, **FSDP1).resident.weights
        for kind in ("buffers", "parameters")
    )
    assert buffers - parameters == 2 * (327_680 + 2_560) // 2
