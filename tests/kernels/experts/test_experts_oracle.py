"""Experts on meta, compared with a real run that has the same routing: the allocations are equal, byte for byte.

Both runs set the routing in the same way. On the CPU, this routing overwrites the choice of the random weights.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cpu_oracle import describe, one_hot_as_on_cuda, record_step, route
from support.moe_models import MOE

from axmem_trace.ledger import Allocation, Ledger

LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}
NO_EXPERTS_INTERFACE = ("llama4", "dbrx")
"""These families have one way to compute experts; `experts_implementation` has no effect on them."""
WITH_LAYER_NORM = ("dbrx", "phimoe")
"""These families run in fp32: with bf16 input, a CPU's layer norm keeps bf16 statistics, but meta keeps fp32
statistics, like a GPU."""


@pytest.mark.parametrize("router", ["balanced", "worst"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("family", MOE)
def test_meta_allocates_the_same_as_a_real_step(family: str, implementation: str, router: str, tmp_path: Path) -> None:
    if family in NO_EXPERTS_INTERFACE and implementation != "eager":
        pytest.skip("has no other implementation")
    if family in WITH_LAYER_NORM and implementation == "grouped_mm":
        pytest.skip("without our rule, meta has no grouped product of fp32 matrices")
    config = make_config(family, tmp_path, experts_implementation=implementation, gradient_checkpointing=True)
    on_meta, for_real = record(config, "meta", router), record(config, "cpu", router)
    assert describe(on_meta, is_rotary) == describe(for_real, is_rotary)
    assert any("expert" in each.module or "ffn" in each.module for each in on_meta.allocations)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_lora_on_fused_experts_is_merged_into_a_copy_of_the_weights(family: str, tmp_path: Path) -> None:
    """peft's `ParamWrapper` adds the product of B and A to the weights, for all experts at once."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = make_config(family, tmp_path, **LORA, lora_target_parameters=parameters)
    on_meta, for_real = record(config, "meta"), record(config, "cpu")
    assert describe(on_meta, is_rotary) == describe(for_real, is_rotary)
    merged = 4 * 2 * (48 if family == "gpt_oss" else 24) * 32 * 2  # experts x 2 x intermediate x hidden, bf16
    copies = [each for each in on_meta.allocations if each.nbytes == merged and each.phase == "forward" and each.kept]
    assert len(copies) >= 2  # one for each layer: the product with the tokens keeps it for its backward


def test_load_balancing_loss(tmp_path: Path) -> None:
    config = make_config("mixtral", tmp_path, overrides_of_model_config={"output_router_logits": True})
    on_meta, for_real = record(config, "meta"), record(config, "cpu")
    assert describe(on_meta, is_rotary) == describe(for_real, is_rotary)
    without = record(make_config("mixtral", tmp_path), "meta")
    assert len(on_meta.allocations) > len(without.allocations)


def make_config(family: str, directory: Path, **keys: Any) -> dict[str, Any]:
    (directory / "config.json").write_text(json.dumps(MOE[family]))
    return {
        "base_model": str(directory),
        "sequence_len": 24,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "attn_implementation": "eager",
        "bf16": family not in WITH_LAYER_NORM,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "datasets": [{"path": "x", "type": "alpaca"}],
        **keys,
    }


def record(config: dict[str, Any], device: str, router: Any = "balanced") -> Ledger:
    """The ledger of a run with a fixed routing."""
    return record_step(config, device, prepare=partial(route, router=router), within=one_hot_as_on_cuda)


def is_rotary(each: Allocation) -> bool:
    """Whether it is PhiMoE's copy of its frequencies from the host to the device. On a CPU there is no copy."""
    return "rotary_emb" in each.module
