"""FP8 and MXFP4 bases with axolotl's kernels plugin: bytes by hand, and a step that trains every adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.moe_models import MOE
from support.quantised_models import LORA, SIZES, build, weight_bytes
from support.tiny_models import write_tiny_model
from support.whole_runs import record

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel

LINEAR = 1_179_648  # weights, see test_weight_bytes.py
REST = 1_051_392  # bytes of all else
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}}
PLUGIN = {"plugins": ["axolotl.integrations.kernels.KernelsPlugin"], "use_scattermoe": True}
SONIC = {**PLUGIN, "use_scattermoe": False, "use_sonicmoe": True}


@pytest.mark.parametrize("plugin", [PLUGIN, SONIC])
def test_fp8_weights_are_kept_with_the_plugin(plugin, tmp_path: Path):
    built = build(tmp_path, {**LORA, **plugin}, gpu="H100", **FP8)
    # One byte a weight; fp32 scales of 128 x 128 blocks: q, o 2*2, k, v 1*2, gate, up 4*2, down 2*4, so 36 a layer.
    assert weight_bytes(built) == REST + LINEAR + 2 * 36 * 4
    assert not [note for note in built.notes if note.kind == "refused"]


@pytest.mark.parametrize(
    ("keys", "gpu"),
    [(LORA, "H100"), ({**LORA, "plugins": PLUGIN["plugins"]}, "H100"), ({**LORA, **PLUGIN}, "A100"), (PLUGIN, "H100")],
    ids=["no plugin", "no kernel", "an old card", "no adapter"],
)
def test_otherwise_fp8_weights_are_unpacked(keys: dict[str, Any], gpu: str, tmp_path: Path):
    full = 1_051_136 if "adapter" not in keys else 0  # embedding, head and norms of a full fine-tune are fp32
    assert weight_bytes(build(tmp_path, keys, gpu=gpu, **FP8)) == REST + LINEAR * 2 + full


def test_fp8_experts_are_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(ConfigError, match="registers neither scattermoe nor sonicmoe"):
        build(tmp_path, {**LORA, **PLUGIN}, family="qwen3_moe", gpu="H100", **FP8)


def _fp8_run(directory: Path, **keys: Any) -> Any:
    base = write_tiny_model("llama", directory / "base", **{**SIZES, **FP8})
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {
        "base_model": base,
        "sequence_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **LORA,
        "lora_target_modules": names,
        **PLUGIN,
        **keys,
    }
    return record(read_recipe(config, hub="never", gpu="H100"))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_every_adapter_over_fp8_weights_gets_a_gradient(kernels, checkpointing, tmp_path: Path):
    switches = dict.fromkeys(["lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"], kernels)
    ledger, built = _fp8_run(tmp_path, gradient_checkpointing=checkpointing, **switches)
    trainable = [each.nbytes for each in built.module.parameters() if each.requires_grad]
    assert len(trainable) == 2 * 2 * 7
    gradients = [each.nbytes for each in ledger.allocations if each.role == "gradient" and each.step == 1]
    assert sorted(gradients) == sorted(trainable)


def test_the_backward_of_older_releases_equals_that_of_5_24(tmp_path: Path, monkeypatch):
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(fp8, "FP8LinearFunction"):
        pytest.skip("this release has no backward to compare with")
    switches = dict.fromkeys(["lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"], False)
    library, _ = _fp8_run(tmp_path, **switches)

    def forward(self: Any, input: Any) -> Any:  # as in 5.16.1, which calls its kernel immediately
        return fp8.fp8_linear(input, self.weight, self.weight_scale_inv, block_size=self.block_size, bias=self.bias)

    monkeypatch.delattr(fp8, "FP8LinearFunction")
    monkeypatch.setattr(fp8.FP8Linear, "forward", forward)
    ours, _ = _fp8_run(tmp_path, **switches)

    def sizes(ledger: Any) -> list[tuple[str, int]]:
        return sorted((each.phase, each.nbytes) for each in ledger.allocations if each.step == 1)

    assert sizes(ours) == sizes(library)


def _gpt_oss(directory: Path, **keys: Any) -> tuple[Any, BuiltModel]:
    changes = {"hidden_size": 64, "intermediate_size": 96, "quantization_config": {"quant_method": "mxfp4"}}
    (directory / "config.json").write_text(json.dumps({**MOE["gpt_oss"], **changes}))
    config = {
        "base_model": str(directory),
        "sequence_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "model_quantization_config": "Mxfp4Config",
        "model_quantization_config_kwargs": {"dequantize": False},
        **LORA,
        **PLUGIN,
        **keys,
    }
    recipe = read_recipe(config, hub="never")
    return recipe, build_model(recipe)


def _experts(built: BuiltModel) -> int:
    return sum(fact.nbytes for fact in built.facts.tensors if ".experts." in fact.name)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_mxfp4_experts_stay_packed_without_hub_kernels(checkpointing, tmp_path: Path):
    recipe, built = _gpt_oss(tmp_path, use_kernels=False, gradient_checkpointing=checkpointing)
    # 2 layers of 4 experts. gate and up: 192 rows of 64 weights, 32 bytes and 2 scales; down: 64 rows of 96 weights, 48
    # bytes and 3 scales; a bias in fp32 for each row.
    assert _experts(built) == 2 * 4 * (192 * (32 + 2) + 64 * (48 + 3) + 4 * (192 + 64))
    ledger, built = record(recipe)
    gradients = [each for each in ledger.allocations if each.role == "gradient" and each.step == 1]
    assert len(gradients) == 2 * 2  # A and B of q_proj in both layers
    # nothing of the experts is kept: [64 tokens * 2 choices, 96] and [.., 64] in bf16 are alive only for a short time
    made = {each.nbytes for each in ledger.allocations if each.module.endswith("0.mlp.experts") and each.step == 1}
    assert {64 * 2 * 96 * 2, 64 * 2 * 64 * 2} <= made
    assert not [
        each
        for each in ledger.allocations
        if each.kept and each.module.endswith(".mlp.experts") and each.nbytes in (64 * 2 * 96 * 2, 64 * 2 * 64 * 2)
    ]


@pytest.mark.parametrize("given", [{}, {"use_kernels": True}])
def test_with_hub_kernels_transformers_unpacks_mxfp4(given, tmp_path: Path):
    """`quantizer_mxfp4.py`: "You are using full precision kernels, we will dequantize the model to bf16"."""
    _, built = _gpt_oss(tmp_path, **given)
    # the same weights and biases in bf16
    assert _experts(built) == 2 * 4 * (192 * 64 + 64 * 96 + 192 + 64) * 2
    (note,) = [note for note in built.notes if note.key == "use_kernels" and note.kind == "warning"]
    assert "`use_kernels: false` keeps the experts packed" in note.text
    assert not [note for note in built.notes if note.kind == "refused"]
