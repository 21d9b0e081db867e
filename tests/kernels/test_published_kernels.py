"""Single kernels, compared with measurements of Liger's authors on GPUs
(`shared/measured/loss_and_kernel_memory.json`).

Their benchmark keeps inputs, weights and the gradients of the iterations before, and uses the largest
`max_memory_allocated`; so does `benchmark`. Figures are in MiB. The stock kernels of the same benchmark are compared
too, to show that the setup is the same.

Some measurements are not compared. RMSNorm was measured with 0.2.1, which made a row of the weight's gradient for every
row of x (0.8.1: for every multiprocessor). LayerNorm was measured with 0.6.0, which made no such rows. The backward of
Liger's and DeepSpeed's own tiled MLP adds to the parameters' gradients in another way than axolotl's. axolotl does not
install the preference losses, and the stock code for their comparison is only in Liger's repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_lifetimes import targets, tensor
from support.kernel_recording import peak_bytes
from support.paths import SHARED
from torch import nn

from axmem_trace.kernels.axolotl.tiled_mlp import TiledMlp
from axmem_trace.kernels.liger.experts import FusedExperts
from axmem_trace.kernels.liger.layers import GatedActivation, LayerNorm, Rope
from axmem_trace.kernels.liger.losses import CrossEntropy, FusedLinearCrossEntropy
from axmem_trace.kernels.losses.cut_cross_entropy import cut_causal_lm_loss
from axmem_trace.tracing.recording_mode import RecordingMode

MEASURED = SHARED / "measured" / "loss_and_kernel_memory.json"
MIB = 2**20
CUBLAS = 2 * 8519680
"""Two cuBLAS workspaces of 8.125 MiB, one for the thread of forward and one for autograd's thread; 32 MiB each on
Hopper."""
SMS = {"NVIDIA A100-SXM4-80GB": 108, "NVIDIA H100 80GB HBM3": 132}


def rows(kernel: str, provider: str, mode: str = "full", x_name: str = "", version: str = "") -> list[tuple[Any, ...]]:
    """For each measurement: the value of x, the other settings, MiB, multiprocessors."""
    if not MEASURED.exists():
        return []
    wanted = (kernel, provider, mode)
    return [
        (
            int(row["x_value"]),
            json.loads(row["extra_benchmark_config_str"]),
            float(row["y_value_50"]),
            SMS.get(row["gpu_name"], 128),
        )
        for row in json.loads(MEASURED.read_text())["rows"]
        if (row["kernel_name"], row["kernel_provider"], row["kernel_operation_mode"]) == wanted
        and x_name in ("", row["x_name"])
        and version in ("", row["liger_version"])
    ]


def benchmark(
    inputs: list[torch.Tensor],
    run: Callable[[], Any],
    *,
    backward: bool = True,
    outside: int = 0,
    retain_graph: bool = True,
    gradient_dtype: torch.dtype | None = None,
    keeps_gradients: bool = True,
) -> float:
    """MiB at the peak of two iterations; `outside` bytes are always allocated. Autograd casts a gradient whose dtype is
    not that of the output."""
    grads: list[torch.Tensor] = []
    recording = RecordingMode()  # cuBLAS's workspaces are added by hand
    recorder = recording.recorder
    with recording:
        for each in inputs:
            recorder.register(each, role="input")
        for _ in range(2):
            outputs = run()
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if backward:
                if not grads and outputs[0].ndim:
                    grads = [torch.empty_like(each, dtype=gradient_dtype) for each in outputs]
                if keeps_gradients:
                    torch.autograd.backward(outputs, grads or None, retain_graph=retain_graph)
                else:
                    trained = [each for each in inputs if each.requires_grad]
                    torch.autograd.grad(outputs, trained, grads, retain_graph=retain_graph)
            del outputs
    return (outside + peak_bytes(recorder.make_ledger().on_gpu, in_blocks=True)) / MIB


@pytest.mark.parametrize(("vocabulary", "config", "measured", "sms"), rows("cross_entropy", "liger"))
def test_cross_entropy(vocabulary: int, config: Any, measured: float, sms: int) -> None:
    # one copy of the fp32 logits; targets (131,072), loss (65,536), the mask (16,384), target * mask (131,072), 512
    x, target = tensor(16384, vocabulary, dtype=torch.float32), targets(16384)
    found = benchmark([x, target], lambda: CrossEntropy.apply(x, target, -100), retain_graph=False)
    assert found == pytest.approx(measured, abs=0.001)


@pytest.mark.parametrize(("vocabulary", "config", "measured", "sms"), rows("cross_entropy", "huggingface"))
def test_stock_cross_entropy(vocabulary: int, config: Any, measured: float, sms: int) -> None:
    x, target = tensor(16384, vocabulary, dtype=torch.float32), targets(16384)
    found = benchmark([x, target], lambda: F.cross_entropy(x, target), retain_graph=False)
    assert found == pytest.approx(measured, abs=0.002)


@pytest.mark.parametrize(("tokens", "config", "measured", "sms"), rows("fused_linear_cross_entropy", "liger"))
def test_fused_linear_cross_entropy(tokens: int, config: Any, measured: float, sms: int) -> None:
    # The benchmark also keeps the stock model's head. liger-kernel 0.4.2 added to the head's gradient in place; 0.8.1
    # makes the product in bf16 and in fp32 (three heads in bf16). 0.4.2 also kept three more copies of a chunk's logits
    # (bf16 and fp32, and the scaled copy of the chunk before, where 0.8.1 has one).
    x, weight, target = tensor(tokens, 4096), tensor(128256, 4096), targets(tokens)
    head, chunk = 128256 * 4096 * 2, tokens // 32 * 128256 * 2
    found = benchmark(
        [x, weight, target],
        lambda: FusedLinearCrossEntropy.apply(x, weight, target, -100),
        outside=head + CUBLAS + 3 * (chunk - head),
        retain_graph=False,
    )
    assert found == pytest.approx(measured, rel=0.0005)


@pytest.mark.parametrize(("tokens", "config", "measured", "sms"), rows("fused_linear_cross_entropy", "huggingface"))
def test_stock_linear_cross_entropy(tokens: int, config: Any, measured: float, sms: int) -> None:
    x, weight, target = tensor(tokens, 4096), tensor(128256, 4096), targets(tokens)
    found = benchmark(
        [x, weight, target],
        lambda: F.cross_entropy(F.linear(x, weight), target),
        outside=128256 * 4096 * 2 + CUBLAS,
        retain_graph=False,
    )
    assert found == pytest.approx(measured, abs=0.1)


@pytest.mark.parametrize(("width", "config", "measured", "sms"), rows("rms_norm", "huggingface"))
def test_stock_rms_norm(width: int, config: Any, measured: float, sms: int) -> None:
    # transformers' class with fp32 weights, so fp32 outputs; at most 20 times the size of x, which is 2048 rows of bf16
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x = tensor(2048, width)
    with torch.device("meta"):
        norm = LlamaRMSNorm(width)
    found = benchmark([x, norm.weight], lambda: norm(x), gradient_dtype=torch.bfloat16)
    assert found == pytest.approx(measured, rel=0.0005)
    assert found == pytest.approx(20 * 2048 * width * 2 / 2**20, rel=0.0005)


@pytest.mark.parametrize(("width", "config", "measured", "sms"), rows("layer_norm", "liger", version="0.2.1"))
def test_layer_norm(width: int, config: Any, measured: float, sms: int) -> None:
    x, weight, bias = (tensor(*shape, dtype=torch.float32) for shape in ((4096, width), (width,), (width,)))
    found = benchmark([x, weight, bias], lambda: LayerNorm.apply(x, weight, bias, sms))
    assert found == pytest.approx(measured, rel=0.0002)


@pytest.mark.parametrize(("width", "config", "measured", "sms"), rows("layer_norm", "huggingface"))
def test_stock_layer_norm(width: int, config: Any, measured: float, sms: int) -> None:
    # the benchmark holds weight and bias of Liger's module too
    x, weight, bias = (tensor(*shape, dtype=torch.float32) for shape in ((4096, width), (width,), (width,)))
    found = benchmark([x, weight, bias], lambda: F.layer_norm(x, (width,), weight, bias), outside=2 * width * 4)
    assert found == pytest.approx(measured, abs=0.001)


@pytest.mark.parametrize(
    ("provider", "x_name", "value", "measured"),
    [
        (provider, name, value, measured)
        for provider in ("liger", "huggingface")
        for name in "HT"
        for value, _, measured, _ in rows("rope", provider, x_name=name)
    ],
)
def test_rope(provider: str, x_name: str, value: int, measured: float) -> None:
    # Allocated are q, k, cos, sin, position ids in int64, inverse frequencies in 512 bytes, and one cuBLAS workspace.
    # The benchmark calls `torch.autograd.grad`, which does not store gradients in the tensors.
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    tokens, head_dim = (value, 256) if x_name == "T" else (2048, value // 32)
    q, k = tensor(1, tokens, 32, head_dim), tensor(1, tokens, 8, head_dim)
    cos, sin = (tensor(1, tokens, head_dim, grad=False) for _ in "cs")
    rotate: Any = Rope.apply if provider == "liger" else apply_rotary_pos_emb
    found = benchmark(
        [q, k, cos, sin],
        lambda: rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin),
        outside=tokens * 8 + 512 + CUBLAS // 2,
        keeps_gradients=False,
    )
    assert found == pytest.approx(measured, abs=0.02)


def _mlp_rows() -> list[tuple[Any, ...]]:
    """The measurements of MLPs. In forward, a tiled MLP of other libraries is the same as axolotl's."""
    found = [
        (activation, provider, mode, tokens, measured)
        for activation in ("geglu", "swiglu", "tiled_swiglu")
        for provider in ("liger", "huggingface")
        for mode in ("full", "backward", "forward")
        for tokens, _, measured, _ in rows(activation, provider, mode)
    ]
    tiled = rows("tiled_swiglu", "deepspeed_tiled", "forward")
    return found + [("tiled_swiglu", "tiled", "forward", tokens, measured) for tokens, _, measured, _ in tiled]


MLP_SIZES = {"geglu": (8, 4096, 11008), "swiglu": (4, 4096, 11008), "tiled_swiglu": (2, 2048, 4096)}
"""Rows, width, inner width."""


@pytest.mark.parametrize(("activation", "provider", "mode", "tokens", "measured"), _mlp_rows())
def test_gated_mlp(activation: str, provider: str, mode: str, tokens: int, measured: float) -> None:
    num_rows, width, inner = MLP_SIZES[activation]
    x = tensor(num_rows, tokens, width)
    with torch.device("meta"):
        gate, up = (nn.Linear(width, inner, bias=False, dtype=torch.bfloat16) for _ in "gu")
        down = nn.Linear(inner, width, bias=False, dtype=torch.bfloat16)
    weights = [gate.weight, up.weight, down.weight]

    def run(x: torch.Tensor) -> torch.Tensor:
        if provider == "liger":
            product: torch.Tensor = GatedActivation.apply(gate(x), up(x))
        elif activation == "geglu":
            product = F.gelu(gate(x), approximate="tanh") * up(x)
        else:
            product = F.silu(gate(x)) * up(x)
        out: torch.Tensor = down(product)
        return out

    def call() -> Any:
        return TiledMlp.apply(run, x, 4, weights) if provider == "tiled" else run(x)

    found = benchmark([x, *weights], call, backward=mode != "forward", outside=CUBLAS)
    assert found == pytest.approx(measured, abs=0.01)


@pytest.mark.parametrize(
    ("x_name", "mode", "value", "measured"),
    [
        (name, mode, value, measured)
        for name in "TE"
        for mode in ("full", "backward", "forward")
        for value, _, measured, _ in rows("fused_moe", "liger", mode, x_name=name)
    ],
)
def test_fused_experts(x_name: str, mode: str, value: int, measured: float) -> None:
    # the benchmark also keeps the weights of a second module, 9 MiB for each expert, and an H100's workspaces, 64 MiB
    tokens, experts = (value, 128) if x_name == "T" else (8192, value)
    x, gate_up, down = tensor(tokens, 2048), tensor(experts, 1536, 2048), tensor(experts, 2048, 768)
    index, scores = torch.empty(tokens, 8, dtype=torch.int32, device="meta"), tensor(tokens, 8)
    found = benchmark(
        [x, gate_up, down, index, scores],
        lambda: FusedExperts.apply(x, gate_up, down, index, scores),
        backward=mode != "forward",
        outside=(9 * experts + 64) * MIB,
    )
    if mode != "forward" and tokens < 8192:
        # the peak of 0.7.0 was in another phase, and above ours by less than one gradient of the down projections; not
        # explained
        assert found <= measured < found + experts * 2048 * 768 * 2 / MIB
    else:
        assert found == pytest.approx(measured, abs=0.02)


def _quoted(phrase: str) -> float:
    """The GB (of 2**30 bytes) after a phrase in TRL's pull request 6858; skips the test if the file does not exist."""
    if not MEASURED.exists():
        pytest.skip("no published measurements here")
    quotes = [each["quote"] for each in json.loads(MEASURED.read_text())["other_loss_benchmarks"]]
    found = re.search(rf"{re.escape(phrase)} ([\d.]+) GB", next(each for each in quotes if "248320 vocab" in each))
    assert found is not None
    return float(found[1])


def _of_trl(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tensor(tokens, 2048), tensor(248320, 2048), targets(tokens)


H100_CUBLAS = 64 * MIB


def test_fused_linear_cross_entropy_in_trl() -> None:
    # Qwen3.5's head of 970 MiB counts six times: the weight, its gradient of the iteration before, the new gradient,
    # and a chunk's part of it in bf16 and in fp32 (two). Hidden states, their old and new gradient: 3 x 64 MiB. One
    # chunk of 256 rows of logits, 121 MiB, and the workspaces
    x, weight, target = _of_trl(16384)
    found = benchmark(
        [x, weight, target],
        lambda: FusedLinearCrossEntropy.apply(x, weight, target, -100),
        outside=H100_CUBLAS,
        retain_graph=False,
    )
    assert found / 1024 == pytest.approx(_quoted("use_liger_kernel=True"), abs=0.005)


@pytest.mark.parametrize(("tokens", "phrase"), [(16384, "loss_type=cce"), (4096, "cce")])
def test_cut_cross_entropy_in_trl(tokens: int, phrase: str) -> None:
    # the weight, its old and new gradient, the same three for the hidden states, the workspaces: 3.09 and 2.95 GiB
    x, weight, target = _of_trl(tokens)
    labels = target.unsqueeze(0)
    found = benchmark(
        [x, weight, target],
        lambda: cut_causal_lm_loss(x.unsqueeze(0), weight, labels, shift_labels=labels),
        outside=H100_CUBLAS,
        retain_graph=False,
    )
    quoted = _quoted(phrase if tokens == 16384 else "at 4096 tokens chunked_nll 38.02 GB, cce")
    assert found / 1024 == pytest.approx(quoted, abs=0.006)


def test_stock_loss_in_trl() -> None:
    # the bf16 logits (7.58 GiB) are freed in backward: fp32 logarithms and gradient, its bf16 copy, and the products
    x, weight, target = _of_trl(16384)

    def run() -> torch.Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), target)

    found = benchmark([x, weight, target], run, outside=H100_CUBLAS, retain_graph=False)
    assert found / 1024 == pytest.approx(_quoted("one big bf16 GEMM (reference)"), abs=0.005)


def test_the_measurements_exist() -> None:
    if not MEASURED.exists():
        pytest.skip("no published measurements here")
    assert len(_mlp_rows()) == 67
