"""Tiny state-space, hybrid and linear-attention models through the whole estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hybrid_models import HYBRIDS, write_hybrid

import axmem_trace
from axmem_trace.report.report import Report

_WITHOUT_ATTENTION = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm")
_KERNELS = {
    "mamba-ssm": tuple(
        "mamba mamba2 falcon_mamba jamba bamba zamba zamba2 falcon_h1 granitemoehybrid nemotron_h".split()
    ),
    "flash-linear-attention": ("qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid"),
    "causal-conv1d": ("lfm2",),
    "rwkv": ("rwkv",),
    "xlstm": ("xlstm",),
}
"""By the note's key, the families whose layers run with that package's kernels (xLSTM runs without them, and a note
says so). The other families run transformers' code, because axolotl has no kernel for them."""
_LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_modules: [in_proj, in_proj_qkvz, q_proj]\n"


def _estimate(directory: Path, family: str, tokens: int, more: str = "") -> Report:
    base = write_hybrid(family, directory / family)
    attention = "" if family in _WITHOUT_ATTENTION else "attn_implementation: flash_attention_2\n"
    config = directory / "config.yml"
    config.write_text(
        f"base_model: {base}\nsequence_len: {tokens}\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\nbf16: true\n"
        f"optimizer: adamw_torch_fused\nlearning_rate: 1e-4\n{attention}datasets: [{{path: x, type: alpaca}}]\n{more}"
    )
    return axmem_trace.estimate(str(config))


def _activations(report: Report) -> int:
    return report.buckets.activations


def _kernels(report: Report) -> set[str]:
    return {note.key for note in report.notes} & set(_KERNELS)


@pytest.mark.parametrize("family", sorted(HYBRIDS))
def test_every_family_runs_with_its_kernels(family: str, tmp_path: Path) -> None:
    found = _kernels(_estimate(tmp_path, family, 128))
    expected = {key for key, families in _KERNELS.items() if family in families}
    assert found - {"causal-conv1d"} == expected - {"causal-conv1d"}
    assert "causal-conv1d" in found or "causal-conv1d" not in expected


@pytest.mark.parametrize("family", ["falcon_mamba", "jamba", "mamba2", "olmo_hybrid", "rwkv", "zamba2"])
def test_activations_grow_with_the_sequence_and_no_faster(family: str, tmp_path: Path) -> None:
    short, long = (_estimate(tmp_path, family, tokens) for tokens in (128, 256))
    assert 1.9 < _activations(long) / _activations(short) < 2.05


@pytest.mark.parametrize("family", ["jamba", "nemotron_h", "qwen3_next"])
def test_with_lora_the_same_kernels_run(family: str, tmp_path: Path) -> None:
    full, lora = _estimate(tmp_path, family, 128), _estimate(tmp_path, family, 128, _LORA)
    assert _kernels(lora) == _kernels(full)
    assert _activations(lora) > 0
    assert lora.resident.optimizer < full.resident.optimizer


def test_the_fused_kernel_keeps_less_than_the_separate_ones(tmp_path: Path) -> None:
    """axolotl's own check: with a quantised output projection, Nemotron-H runs convolution and scan separately."""
    fused = _estimate(tmp_path, "nemotron_h", 256, _LORA)
    qlora = _LORA.replace("adapter: lora", "adapter: qlora\nload_in_4bit: true")
    separate = _estimate(tmp_path, "nemotron_h", 256, qlora)
    assert _activations(separate) > _activations(fused)
    assert "mamba-ssm.quantised" not in {note.key for note in separate.notes}


def test_a_quantised_projection_without_a_guard_is_reported(tmp_path: Path) -> None:
    qlora = _LORA.replace("adapter: lora", "adapter: qlora\nload_in_4bit: true")
    report = _estimate(tmp_path, "bamba", 128, qlora)
    assert "mamba-ssm.quantised" in {note.key for note in report.notes if note.kind == "warning"}


def test_packed_samples_use_flas_convolution(tmp_path: Path) -> None:
    report = _estimate(tmp_path, "qwen3_next", 256, "sample_packing: true\n")
    (note,) = [note for note in report.notes if note.key == "causal-conv1d"]
    assert note.kind == "ruled"
    assert "packed samples" in note.text


@pytest.mark.parametrize("family", ["falcon_h1", "granitemoehybrid"])
def test_packing_that_axolotl_cannot_patch_is_reported(family: str, tmp_path: Path) -> None:
    report = _estimate(tmp_path, family, 128, "sample_packing: true\n")
    (refusal,) = [refusal for refusal in report.refusals if refusal.key == "sample_packing"]
    assert "transformers 5.16" in refusal.reason
