"""From the keys of a configuration to the installed kernels and their memory, end to end on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.kernel_configs import TOKENS, configure, warned

from axmem_trace import Report, estimate
from axmem_trace.config import read_recipe
from axmem_trace.models import build_model
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.trace import record_run

LIGER = ["axolotl.integrations.liger.LigerPlugin"]
CCE = ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]
LIGER_KEYS = ("liger_rope", "liger_rms_norm", "liger_glu_activation")
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
OFF = dict.fromkeys((*KERNELS, "lora_embedding_kernel"), False)
LAYERS, WIDTH, INNER, VOCABULARY = 2, 32, 48, 96


def run(family: str, directory: Path, **changes: Any) -> Report:
    return estimate(configure(family, directory, **changes), hub="never")


def ruled(report: Report) -> set[str]:
    """The keys of kernels that were installed."""
    keys = (*LIGER_KEYS, *KERNELS, "liger_fused_linear_cross_entropy", "liger_cross_entropy", "cut_cross_entropy")
    return {note.key for note in report.notes if note.kind == "ruled" and note.key in keys}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3", "phi3"])
def test_liger_all_on(family: str, tmp_path: Path) -> None:
    keys = (*LIGER_KEYS, "liger_fused_linear_cross_entropy")
    report = run(family, tmp_path, plugins=LIGER, **dict.fromkeys(keys, True))
    assert ruled(report) == set(keys)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3", "phi3"])
def test_cut_cross_entropy(family: str, tmp_path: Path) -> None:
    assert ruled(run(family, tmp_path, plugins=CCE)) == {"cut_cross_entropy"}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3"])
def test_lora_kernels_are_on_automatically(family: str, tmp_path: Path) -> None:
    assert ruled(run(family, tmp_path, **LORA)) == set(KERNELS)
    assert ruled(run(family, tmp_path, **LORA, **OFF)) == set()
    assert ruled(run(family, tmp_path, **LORA, **{**OFF, "lora_o_kernel": True})) == {"lora_o_kernel"}


def test_phi3_code_cannot_be_rewritten(tmp_path: Path) -> None:
    report = run("phi3", tmp_path, **LORA)
    assert ruled(report) == set()
    (refusal,) = report.refusals
    assert "cannot rewrite Phi3Attention.forward" in refusal.reason
    assert "switches them on automatically" in refusal.reason
    assert (refusal.key, refusal.remedy) == ("lora_qkv_kernel", "set `lora_qkv_kernel: false`, `lora_o_kernel: false`")
    assert not run("phi3", tmp_path, **LORA, lora_qkv_kernel=False).refusals


@pytest.mark.parametrize(("family", "why"), [("gpt_neox", "does not find the layers"), ("phi3", "cannot rewrite")])
def test_lora_kernels_that_an_architecture_does_not_support_are_refused(family: str, why: str, tmp_path: Path):
    keys = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "lora_qkv_kernel": True}
    report = run(family, tmp_path, **keys)
    (refusal,) = report.refusals
    assert why in refusal.reason
    assert (refusal.key, refusal.value) == ("lora_qkv_kernel", "true")
    plain = run(family, tmp_path, **{**keys, "lora_qkv_kernel": False})
    assert not plain.refusals
    assert plain.peak == report.peak


def test_lora_kernels_need_an_adapter_on_each_projection(tmp_path: Path) -> None:
    report = run("llama", tmp_path, adapter="lora", lora_r=4, lora_alpha=8, lora_target_modules=["q_proj", "v_proj"])
    assert ruled(report) == set()
    assert set(warned(report)) >= set(KERNELS)


@pytest.mark.parametrize(
    "changes", [{"load_in_8bit": True}, {"rl": "dpo"}, {"adapter": ""}], ids=["int8", "preference", "full"]
)
def test_cases_in_which_axolotl_keeps_the_lora_kernels_off(changes: dict[str, Any], tmp_path: Path) -> None:
    config = configure("llama", tmp_path, **{**LORA, **changes})
    assert read_recipe({key: value for key, value in config.items() if value != ""}).kernels.lora == frozenset()


def kept(family: str, directory: Path, **changes: Any) -> int:
    """Bytes of the first step that are alive when backward begins, without inputs."""
    recipe = read_recipe(configure(family, directory, **changes), hub="never")
    built = build_model(recipe)
    ledger = record_run(recipe, built, build_optimizer(recipe, built.module)).ledger
    return sum(each.nbytes for each in ledger.on_gpu if each.kept and each.step == 1)


def test_swiglu_keeps_one_tensor_less(tmp_path: Path) -> None:
    # silu's output [tokens, intermediate] in bf16, per layer; the product is kept for down_proj either way
    stock, fused = (kept("llama", tmp_path, plugins=LIGER, liger_glu_activation=on) for on in (False, True))
    assert stock - fused == LAYERS * TOKENS * INNER * 2


def test_rms_norm_keeps_no_fp32_copy(tmp_path: Path) -> None:
    # stock, for each of five norms: x in fp32 (8,192), a reciprocal per row (256), and x normalised in bf16 (4,096);
    # fused: x (4,096) and the reciprocals
    stock, fused = (kept("llama", tmp_path, plugins=LIGER, liger_rms_norm=on) for on in (False, True))
    assert stock - fused == (2 * LAYERS + 1) * TOKENS * WIDTH * 4


def test_rotation_in_place_keeps_the_same(tmp_path: Path) -> None:
    # cos and sin in both: what is saved are transients
    stock, fused = (kept("llama", tmp_path, plugins=LIGER, liger_rope=on) for on in (False, True))
    assert stock == fused


STOCK_LOSS = TOKENS * VOCABULARY * 4 + TOKENS * 8 + 12
"""fp32 log-probabilities, shifted labels in int64, three fp32 scalars."""


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        # the fp32 logits, which are the gradient, are kept instead of the log-probabilities
        ({"plugins": LIGER, "liger_cross_entropy": True}, TOKENS * 8 + 12),
        # the head's input, 4,096, is not kept, but its gradient, and the head's: 6,144
        ({"plugins": LIGER, "liger_fused_linear_cross_entropy": True}, STOCK_LOSS - VOCABULARY * WIDTH * 2),
        # in fp32, a number for each token (63 have a label) and for each vocabulary entry; indices in int64
        ({"plugins": CCE}, STOCK_LOSS - 63 * 4 - VOCABULARY * 4 - 63 * 8),
    ],
    ids=["cross_entropy", "fused_linear", "cut"],
)
def test_tensors_that_a_loss_keeps(changes: dict[str, Any], difference: int, tmp_path: Path) -> None:
    assert kept("llama", tmp_path) - kept("llama", tmp_path, **changes) == difference


def test_lora_kernels_keep_less(tmp_path: Path) -> None:
    # peft keeps an fp32 copy of each projection's input and each A's output; the kernels keep inputs as they are
    on, off = (kept("llama", tmp_path, **LORA, **keys) for keys in ({}, OFF))
    assert off - on > LAYERS * 3 * TOKENS * WIDTH * 4


def test_liger_is_refused_if_axolotl_declares_it_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**LORA, "plugins": ["axolotl.integrations.liger.LigerPlugin"], "lora_qkv_kernel": False}
    plain = run("llama", tmp_path, **keys)
    monkeypatch.setattr("axmem_trace.kernels.liger.install.UNSUPPORTED", ("llama",))
    report = run("llama", tmp_path, **keys, liger_rms_norm=True)
    (refusal,) = report.refusals
    assert (refusal.key, refusal.value) == ("liger_rms_norm", "true")
    assert report.peak == plain.peak
