"""LoRA on packed experts: the adapter is applied once in each forward, and each of its matrices gets a gradient."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peft import LoraConfig, get_peft_model
from support.whole_runs import make_config, make_recipe, record
from torch import nn
from torch.nn.utils import parametrize

from axmem_trace.config import read_recipe
from axmem_trace.kernels.experts.quantised_adapters import adapters_of_quantised_experts
from axmem_trace.models.adapters.peft_changes import peft_as_axolotl_changes_it
from axmem_trace.models.adapters.targets import expand_parametrised_targets

EXPERTS, HIDDEN, INNER, RANK = 2, 64, 128, 4


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))

    def forward(self, tokens):
        return torch.einsum("ehi,eti->eth", self.down, torch.einsum("eih,eth->eti", self.up, tokens).relu())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, tokens):
        return self.experts(tokens)


def adapted(block: nn.Module) -> nn.Module:
    targets = expand_parametrised_targets(block, ["experts.down", "experts.up"])
    config = LoraConfig(r=RANK, lora_alpha=8, target_parameters=targets, init_lora_weights=False)
    with peft_as_axolotl_changes_it(block, config, []):
        return get_peft_model(block, config)


def packed_and_plain() -> tuple[nn.Module, nn.Module]:
    """A block with packed experts, and one with the same weights unpacked. Both have the same adapter."""
    torch.manual_seed(1)
    packed = Block()
    for name in ("up", "down"):
        replace_parameter_4bit(packed.experts, name)
    plain = Block()
    with torch.no_grad():
        for name in ("up", "down"):
            getattr(plain.experts, name).copy_(getattr(packed.experts, name))
    packed, plain = adapted(packed), adapted(plain)
    plain.load_state_dict({k: v for k, v in packed.state_dict().items() if "lora_" in k}, strict=False)
    return packed, plain


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def test_repeated_forwards_and_gradients_equal_those_of_plain_weights():
    packed, plain = packed_and_plain()
    tokens = torch.randn(EXPERTS, 3, HIDDEN)
    with adapters_of_quantised_experts(packed), warnings.catch_warnings():
        warnings.simplefilter("error")  # peft's warning about an adapter that it can't remove
        for _ in range(3):  # gradients are accumulated
            out, expected = packed(tokens), plain(tokens)
            torch.testing.assert_close(out, expected)
            out.sum().backward()
            expected.sum().backward()
    found, right = gradients(packed), gradients(plain)
    assert len(found) == 4  # A and B of two weights
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, right[name], msg=name)
    for chain in packed.base_model.model.experts.get_base_layer().parametrizations.values():
        assert len(chain) == 1


def test_peft_handles_another_model():
    from peft.tuners.lora.layer import ParamWrapper

    before = ParamWrapper._activate_lora
    with adapters_of_quantised_experts(copy.deepcopy(adapted(Block()))):
        assert ParamWrapper._activate_lora is before


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("checkpointing", [{}, {"use_reentrant": True}, {"use_reentrant": False}])
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_several_micro_batches_train_every_matrix(bits, checkpointing, accumulation, tmp_path):
    recipe = make_recipe(
        tmp_path,
        "qwen3_moe",
        adapter="qlora" if bits == "load_in_4bit" else "lora",
        quantize_moe_experts=True,
        lora_r=RANK,
        lora_alpha=8,
        lora_target_modules=["q_proj"],
        gradient_accumulation_steps=accumulation,
        lora_target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        sequence_len=32,
        gradient_checkpointing=bool(checkpointing),
        lora_qkv_kernel=False,
        lora_o_kernel=False,
        lora_mlp_kernel=False,
        **{bits: True, **({"gradient_checkpointing_kwargs": checkpointing} if checkpointing else {})},
    )
    ledger, built = record(recipe)
    trainable = [each for each in built.module.parameters() if each.requires_grad]
    # 2 layers: A and B of q_proj, gate_up_proj and down_proj
    assert len(trainable) == 2 * 2 * 3
    of_step = [each for each in ledger.allocations if each.role == "gradient" and each.step == 1]
    assert sorted(each.nbytes for each in of_step) == sorted(each.nbytes for each in trainable)


@pytest.mark.parametrize(("release", "kept"), [("0.19.0", 2), ("0.20.0", 0), ("0.21.0", 0)])
def test_unpacked_8_bit_experts_stay_after_an_early_stop_in_0_19(release, kept, tmp_path):
    config = make_config(
        tmp_path,
        "qwen3_moe",
        adapter="lora",
        load_in_8bit=True,
        quantize_moe_experts=True,
        lora_r=RANK,
        lora_alpha=8,
        lora_target_modules=["q_proj"],
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    ledger, _ = record(read_recipe(config, hub="never", axolotl=release))
    end = next(mark.tick for mark in ledger.marks if mark.phase == "optimizer")
    unpacked = [each for each in ledger.allocations if "experts.parametrizations" in each.module]
    alive = [each.nbytes for each in unpacked if each.allocated_tick < end < each.freed_tick and each.phase != "load"]
    # gate_up 4 x 48 x 32 and down 4 x 32 x 24 in fp32, of the layers whose recomputation stops in the experts
    assert sum(alive) == kept * 4 * (4 * 48 * 32 + 4 * 32 * 24)
    assert parametrize._cache_enabled == 0
    assert parametrize._cache == {}
