"""fms-acceleration's LoRA kernels: the same results as peft's, and the tensors that they keep, by hand."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.kernel_lifetimes import live, tensor
from torch import nn

from axmem_trace.kernels.lora.separate_dropout import SeparateDropout, _adapter, install_separate_dropout
from axmem_trace.models.quantisation.packed_linear import PackedFormat, PackedLinear

ROWS, TOKENS, WIDTH, NARROW, RANK = 2, 32, 256, 128, 8
SHAPES = {"q_proj": (WIDTH, WIDTH), "k_proj": (WIDTH, NARROW), "v_proj": (WIDTH, NARROW), "o_proj": (WIDTH, WIDTH)}
X = ROWS * TOKENS * WIDTH * 2
"""32,768 bytes: the input in bf16."""


def make_attention(*, dropout: float, dtype: torch.dtype = torch.bfloat16, device: str = "meta") -> Any:
    with torch.device(device):
        layer = nn.Module()
        for name, (num_in, num_out) in SHAPES.items():
            layer.add_module(name, nn.Linear(num_in, num_out, bias=False, dtype=dtype))
        layer.requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=16, lora_dropout=dropout, target_modules=[*SHAPES])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, layer)
    return layer.train()


def run(layers: list[Any], x: torch.Tensor) -> Any:
    return SeparateDropout.apply(layers, x * 1, *(part for layer in layers for part in _adapter(layer)))


def qkv(layer: Any) -> list[Any]:
    return [layer.q_proj, layer.k_proj, layer.v_proj]


def test_outputs_and_gradients_are_those_of_peft() -> None:
    torch.manual_seed(0)
    layer = make_attention(dropout=0.0, dtype=torch.float32, device="cpu")
    for name in SHAPES:
        nn.init.normal_(getattr(layer, name).lora_B["default"].weight)
    layers, x = qkv(layer), torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    wanted = [x, *(part for each in layers for part in _adapter(each))]
    found = []
    for outputs in (run(layers, x), [each(x) for each in layers]):
        loss = sum((output * (index + 1)).sum() for index, output in enumerate(outputs))
        found.append((outputs, torch.autograd.grad(loss, wanted)))
    for ours, pefts in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(ours, pefts, rtol=1e-4, atol=1e-3)
    for ours, pefts in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, pefts, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("names", "outputs"), [(("q_proj", "k_proj", "v_proj"), X + 2 * X // 2), (("o_proj",), X)])
def test_each_projection_keeps_its_input_after_its_dropout_and_no_mask(names: tuple[str, ...], outputs: int) -> None:
    """The input, 32,768 bytes, and as much for each projection; q and o are 32,768, k and v 16,384 each."""
    layer = make_attention(dropout=0.1)
    lives = live([tensor(ROWS, TOKENS, WIDTH)], lambda x: run([getattr(layer, name) for name in names], x))
    assert lives.kept == X + len(names) * X + outputs


def test_gptq_makes_another_gradient_of_the_input_and_holds_all_weights() -> None:
    """In forward the three dequantised weights, 131,072 + 2 * 65,536 bytes, are alive together, with: input, dropped
    inputs and outputs as they are kept, 4 X + 2 X. In backward bitsandbytes' version writes the first product into the
    input, GPTQ's makes a tensor of 32,768 bytes."""
    layer = make_attention(dropout=0.1)
    plain = live([tensor(ROWS, TOKENS, WIDTH)], lambda x: run(qkv(layer), x))
    for name, (num_in, num_out) in SHAPES.items():
        with torch.device("meta"):
            getattr(layer, name).base_layer = PackedLinear(
                num_in, num_out, False, PackedFormat("gptq", 4, 128, "triton")
            )
    packed = live([tensor(ROWS, TOKENS, WIDTH, dtype=torch.float16)], lambda x: run(qkv(layer), x))
    assert packed.kept == plain.kept == 6 * X
    assert packed.forward >= 6 * X + 131_072 + 2 * 65_536
    assert packed.backward - plain.backward >= X


def test_only_projections_with_adapters_are_replaced() -> None:
    layer = make_attention(dropout=0.1)
    layer.k_proj = layer.k_proj.base_layer
    replaced: list[Any] = []
    site: Any = SimpleNamespace(
        model=layer,
        recipe=SimpleNamespace(kernels=SimpleNamespace(lora=frozenset({"qkv", "o"}))),
        replace_forward=lambda module, forward: replaced.append(module),
        note=lambda note: None,
    )
    install_separate_dropout(site)
    assert replaced == [layer.o_proj]
