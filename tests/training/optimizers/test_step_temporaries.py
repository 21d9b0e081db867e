"""Temporary memory of a step: clipping, unscaling, torch's three implementations of a step, and parameter groups."""

from __future__ import annotations

import pytest
import torch
from support.optimizer_steps import make_llama, on_meta, recipe_of
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.training.optimizers import GradientScaler, build_optimizer, clip_gradients

DECAYING = 2 * (2 * 2048 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 129 * 64)
"""Bytes of all matrices in bf16: the group with weight decay."""
ENDS = 2 * 2 * 2048 * 64
"""Bytes of embedding and head in bf16."""


def with_gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.empty(shape, dtype=torch.bfloat16, device="meta")) for shape in (700, 300, 90)]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    return parameters


@pytest.mark.parametrize("max_norm", [1.0, 0.0])
def test_clipping_makes_norms_and_works_in_place(max_norm):
    parameters = with_gradients()
    before = [parameter.grad for parameter in parameters]
    recording = RecordingMode()
    recorder = recording.recorder
    with recording:
        norm = clip_gradients(parameters, max_norm)
    made = recorder.make_ledger().allocations
    # torch/nn/utils/clip_grad.py: a 0-d bf16 norm per gradient, the three stacked (6 bytes), then 0-d tensors: their
    # norm, its sum with 1e-6, the coefficient and its clamp. `max_grad_norm: 0` still calculates the norm, for the log.
    assert sorted(each.nbytes for each in made if each.nbytes > 2) == [6]
    assert sum(each.op == "aten._foreach_norm.Scalar" for each in made) == 3
    assert all(parameter.grad is gradient for parameter, gradient in zip(parameters, before, strict=True))
    assert norm.shape == ()
    assert sum(each.alive(recorder.now) for each in made) == 1


def test_scaler_makes_only_scalars():
    scaler, parameters, recording = GradientScaler(), with_gradients(), RecordingMode()
    loss = torch.empty((), device="meta")
    with recording:
        scaled = scaler.scale(loss)
        scaler.unscale(parameters)
    # torch/amp/grad_scaler.py: the scale (fp32), the growth tracker (int32) and the scaled loss; then the scale as a
    # double, its reciprocal, the reciprocal as a float, and `found_inf`.
    assert [each.nbytes for each in recording.recorder.make_ledger().allocations] == [4, 4, 4, 8, 8, 4, 4]
    assert scaled.shape == ()
    assert sum(tensor.nbytes for tensor in scaler.state_tensors()) == 8


def test_scaler_without_a_scale_has_nothing_to_undo():
    recording, parameters = RecordingMode(), with_gradients()
    with recording:
        GradientScaler().unscale(parameters)
    assert recording.recorder.make_ledger().allocations == ()


def test_foreach_adamw_makes_one_copy_of_its_largest_group():
    # torch/optim/adam.py, _multi_tensor_adam: `exp_avg_sq_sqrt`, one for each parameter of the group
    _, steps = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="adamw_torch")
    assert steps.peaks[1] == DECAYING


def test_fused_adamw_makes_nothing():
    _, steps = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="adamw_torch_fused")
    assert steps.peaks[1] == 0


def stepped_as(implementation: str, name: str = "adamw_torch") -> int:
    recipe = recipe_of(optimizer=name, assume=(f"optimizer_implementation={implementation}",))
    _, steps = on_meta(make_llama(torch.bfloat16, "meta"), recipe=recipe)
    return steps.peaks[1]


def test_implementation_may_be_assumed():
    # _single_tensor_adam: for the head, the root and its quotient. The denominator of down_proj, the tensor before it
    # in the group, is still alive, because its name is assigned again only after that.
    assert stepped_as("for-loop") == 2 * 2 * 2048 * 64 + 2 * 64 * 129
    assert stepped_as("fused") == 0
    assert stepped_as("foreach", "adamw_torch_fused") == DECAYING


@pytest.mark.parametrize("name", ["adagrad", "rmsprop"])
def test_an_optimizer_without_a_fused_kernel_is_reported(name):
    with pytest.raises(ConfigError, match="fused"):
        stepped_as("fused", name)


def test_embedding_lr_puts_embeddings_into_a_separate_group():
    # axolotl's groups: matrices; embeddings and heads; norms. Now only the largest of these groups is copied.
    optimizer, steps = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="adamw_torch", embedding_lr=1e-5)
    assert [len(group["params"]) for group in optimizer.optimizers[0].param_groups] == [7, 2, 3]
    assert steps.peaks[1] == ENDS


def test_embedding_lr_removes_the_fp32_states_of_embeddings():
    plain, _ = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="adamw_bnb_8bit")
    apart, _ = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="adamw_bnb_8bit", embedding_lr=1e-5)
    # For 131,072 elements, two states of 4 bytes become states of 1 byte with an fp32 absmax for every 256 elements.
    assert plain.state_bytes() - apart.state_bytes() == 2 * (4 * 131072 - (131072 + 4 * 512))


def test_loraplus_puts_a_and_b_into_separate_groups():
    from peft import LoraConfig, get_peft_model

    module = get_peft_model(make_llama(torch.float32, "meta"), LoraConfig(r=8, target_modules=["q_proj"]))
    recipe = recipe_of(
        optimizer="adamw_torch",
        adapter="lora",
        lora_r=8,
        lora_alpha=8,
        lora_target_modules=["q_proj"],
        loraplus_lr_ratio=16.0,
    )
    groups = build_optimizer(recipe, module).optimizers[0].param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(8, 64)], [(64, 8)]]
    assert groups[1]["lr"] == 16 * groups[0]["lr"]


def test_optim_args_reach_the_optimizer():
    plain, _ = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="sgd")
    momentum, _ = on_meta(make_llama(torch.bfloat16, "meta"), optimizer="sgd", optim_args="momentum=0.9")
    assert (plain.state_bytes(), momentum.state_bytes()) == (0, DECAYING + 3 * 64 * 2)


def test_optim_target_modules_select_the_projected_matrices():
    keys = {"optimizer": "galore_adamw", "optim_args": {"rank": 8}, "optim_target_modules": ["q_proj"]}
    optimizer, _ = on_meta(make_llama(torch.bfloat16, "meta"), **keys)
    # q_proj alone: a basis and two states of 8 x 64 replace two states of 64 x 64
    assert optimizer.state_bytes() == 2 * (DECAYING + 3 * 64 * 2) - 2 * 64 * 64 * 2 + 3 * 8 * 64 * 2
    with pytest.raises(ConfigError, match="optim_target_modules"):
        on_meta(make_llama(torch.bfloat16, "meta"), optimizer="galore_adamw")
    with pytest.raises(ConfigError, match="no linear layer matches"):
        on_meta(make_llama(torch.bfloat16, "meta"), **{**keys, "optim_target_modules": ["nothing"]})
