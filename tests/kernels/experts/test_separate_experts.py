"""Experts as linear layers, as before transformers 5: their loop, their bytes when packed, their names for LoRA."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cpu_oracle import describe, one_hot_as_on_cuda, record_step, route
from support.moe_models import MOE
from torch import nn

import axmem_trace
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model
from axmem_trace.models.built import BuiltModel

LINEAR = ["experts_layout=linear"]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}


def configure(family: str, directory: Path, own: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    changes = {"quantization_config": own} if own else {}
    (directory / "config.json").write_text(json.dumps({**MOE[family], **changes}))
    return {
        "base_model": str(directory),
        "sequence_len": 24,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "attn_implementation": "eager",
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }


def build(config: dict[str, Any], assumptions: list[str]) -> BuiltModel:
    return build_model(read_recipe(config, hub="never", assumptions=assumptions))


@pytest.mark.parametrize("router", ["balanced", "worst"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_meta_allocates_the_same_as_a_real_step(family: str, router: Any, tmp_path: Path) -> None:
    config = configure(family, tmp_path, gradient_checkpointing=True)
    on_meta, for_real = (
        record_step(
            config, device, prepare=partial(route, router=router), within=one_hot_as_on_cuda, assumptions=LINEAR
        )
        for device in ("meta", "cpu")
    )
    assert describe(on_meta) == describe(for_real)
    assert any(".experts.3.w2" in each.module or ".experts.3.down_proj" in each.module for each in on_meta.allocations)


def test_packed_experts_of_a_gptq_checkpoint(tmp_path: Path) -> None:
    config = configure("mixtral", tmp_path, GPTQ, gptq=True, lora_target_modules=["q_proj"], **LORA)
    facts = build(config, LINEAR).facts
    experts = [fact for fact in facts.tensors if ".experts." in fact.name]
    # Two layers of four experts, with width 32 and inner width 48. w1, w3: qweight 32 / 8 x 48 and qzeros 1 x 48 / 8
    # words, scales 48 halves, g_idx 32 words. w2: qweight 48 / 8 x 32, two groups of qzeros 32 / 8 and scales 32, g_idx
    # 48.
    up = 4 * (4 * 48 + 6 + 32) + 2 * 48
    down = 4 * (6 * 32 + 2 * 4 + 48) + 2 * 2 * 32
    assert sum(fact.nbytes for fact in experts) == 2 * 4 * (2 * up + down)
    assert sum(fact.logical_elements for fact in experts) == 2 * 4 * 3 * 32 * 48
    unpacked = build(configure("mixtral", tmp_path), []).facts.parameters
    assert facts.parameters - facts.trainable_parameters == unpacked


def test_fused_experts_of_a_gptq_checkpoint_are_reported_to_be_random(tmp_path: Path) -> None:
    config = configure("mixtral", tmp_path, GPTQ, gptq=True, lora_target_modules=["q_proj"], **LORA)
    notes = {note.key: note for note in build(config, []).notes if note.kind == "warning"}
    assert "with random weights" in notes["base_model"].text
    assert notes["base_model"].bytes == 2 * 4 * 3 * 32 * 48 * 2  # bf16, as `torch_dtype` says
    assert "optimum 1.24" in notes["gptq"].text


def test_lora_finds_them_by_their_names(tmp_path: Path) -> None:
    config = configure("mixtral", tmp_path, lora_target_modules=["w1", "w2", "w3"], **LORA)
    adapters = [fact for fact in build(config, LINEAR).facts.tensors if fact.role == "adapter"]
    # Rank 4 on three layers, 32 + 48 features each, of four experts in two layers.
    assert sum(fact.elements for fact in adapters) == 2 * 4 * 3 * 4 * (32 + 48)


@pytest.mark.parametrize(
    ("family", "projections"),
    [("mixtral", ["w1", "w2", "w3"]), ("qwen3_moe", ["down_proj", "gate_proj", "up_proj"])],
)
@pytest.mark.parametrize("keys", [{"adapter": "lora"}, {"adapter": "qlora", "load_in_4bit": True}])
def test_all_linear_layers_are_those_of_transformers_4(family, projections, keys, tmp_path: Path) -> None:
    built = build(configure(family, tmp_path, lora_target_linear=True, **{**LORA, **keys}), LINEAR)
    adapted = {
        name.rpartition(".lora_A")[0].rpartition(".")[2]
        for name, _ in built.module.named_parameters()
        if ".lora_A." in name
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate", *projections}
    axmem_trace.estimate(configure(family, tmp_path, lora_target_linear=True, **{**LORA, **keys}), assumptions=LINEAR)


def test_a_router_stays_if_its_logits_are_needed(tmp_path: Path) -> None:
    config = configure("mixtral", tmp_path, {}, overrides_of_model_config={"output_router_logits": True})
    report = axmem_trace.estimate(config, assumptions=LINEAR)
    assert report.phases["step_2"].allocated_bytes > 0


def test_no_class_here_is_treated_as_a_linear_layer() -> None:
    """axolotl and `find_linear_names` check only the name, so a class with this name must be a linear layer."""
    for info in pkgutil.walk_packages(axmem_trace.__path__, "axmem_trace."):
        if info.name.endswith("__main__") or info.name.startswith("axmem_trace.integrations."):  # needs axolotl
            continue
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == info.name:
                is_linear = issubclass(kind, nn.Linear) or "PackedLinear" in kind.__name__
                assert ("Linear" in kind.__name__) <= is_linear, kind


@pytest.mark.parametrize("family", ["gpt_oss", "dbrx"])
def test_other_layouts_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no fused experts with gate, up and down"):
        build(configure(family, tmp_path), LINEAR)
