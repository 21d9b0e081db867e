"""axolotl's LoRA kernels, compared with axolotl's own `kernels/lora.py` (0.19). It ran as described in
`test_layers.py`: on a CPU, with the recorder, peft 0.20 layers and kernels that do nothing. The sizes of all
allocations were equal."""

from __future__ import annotations

import warnings
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.kernel_lifetimes import Lives, live, tensor
from torch import nn

from axmem_trace.kernels.axolotl.tiled_mlp import TiledMlp
from axmem_trace.kernels.lora.embedding import run_embedding
from axmem_trace.kernels.lora.functions import run_projections
from axmem_trace.kernels.lora.mlp import run_mlp

ROWS, TOKENS, WIDTH, INNER, RANK = 2, 32, 256, 512, 8
PROJECTIONS = {
    "q_proj": (256, 256),
    "k_proj": (256, 128),
    "v_proj": (256, 128),
    "o_proj": (256, 256),
    "gate_proj": (256, 512),
    "up_proj": (256, 512),
    "down_proj": (512, 256),
}


def make_layer(*, nf4: bool = False, adapters: torch.dtype = torch.float32, **lora: Any) -> Any:
    """A module with every projection of a layer and an embedding, in bf16, all with LoRA."""
    with torch.device("meta"):
        layer = nn.Module()
        for name, (num_in, num_out) in PROJECTIONS.items():
            layer.add_module(name, nn.Linear(num_in, num_out, bias=False, dtype=torch.bfloat16))
        layer.add_module("embedding", nn.Embedding(300, WIDTH, dtype=torch.bfloat16))
        layer.requires_grad_(False)
        names = [*PROJECTIONS] if lora.get("lora_bias") else [*PROJECTIONS, "embedding"]  # peft has no bias for those
        config = LoraConfig(r=RANK, lora_alpha=16, target_modules=names, **lora)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, layer)
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapters)
    if nf4:
        for name in PROJECTIONS:
            _pack(getattr(layer, name).base_layer)
    return layer.train()


def _pack(linear: nn.Linear) -> None:
    """Packs a layer as nf4 with double quantisation, in bitsandbytes' layout."""
    (shape, size) = linear.weight.shape, linear.weight.numel()
    inner = bnb.QuantState(
        absmax=torch.empty(max(1, size // 64 // 256), device="meta"),
        blocksize=256,
        code=torch.empty(256, device="meta"),
        dtype=torch.float32,
    )
    state = bnb.QuantState(
        absmax=torch.empty(size // 64, dtype=torch.uint8, device="meta"),
        shape=shape,
        blocksize=64,
        code=torch.empty(16, device="meta"),
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.empty((), device="meta"),
        state2=inner,
    )
    packed: Any = nn.Parameter(torch.empty(size // 2, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
    packed.quant_state = state
    linear.weight = packed


def qkv(layer: Any, x: torch.Tensor) -> Any:
    return run_projections([layer.q_proj, layer.k_proj, layer.v_proj], x * 1, training=True, order="qkv")


def o(layer: Any, x: torch.Tensor) -> Any:
    return run_projections([layer.o_proj], x * 1, training=True, order="o")


def mlp(layer: Any, x: torch.Tensor) -> Any:
    return run_mlp(layer, x * 1)


X = ROWS * TOKENS * WIDTH * 2
"""32,768 bytes of input, which is made here and kept. Also kept: q 32,768, k and v 16,384 each, and A and B of all
three in bf16: 3 x 4,096 + 4,096 + 2 x 2,048 = 20,480."""
KEPT_BY_QKV = X + 65536 + 20480


@pytest.mark.parametrize(
    ("kernel", "changes", "expected"),
    [
        (qkv, {}, Lives(118784, KEPT_BY_QKV, 260096, 73728)),
        (o, {}, Lives(74752, 73728, 159744, 49152)),
        # input 32,768, gate and up 65,536 each, output 32,768, A and B of all three in bf16 36,864; in forward also
        # the product, 65,536
        (mlp, {}, Lives(299008, 32768 + 2 * 65536 + 32768 + 36864, 404480, 106496)),
        # bf16 adapters are kept as they are: no copies
        (qkv, {"adapters": torch.bfloat16}, Lives(99328, KEPT_BY_QKV - 20480, 220160, 53248)),
        (o, {"adapters": torch.bfloat16}, Lives(66560, 65536, 140288, 40960)),
        (mlp, {"adapters": torch.bfloat16}, Lives(263168, 196608, 367616, 69632)),
        # a dequantised weight [256, 256] is 131,072 and its fp32 scales 4,096 bytes, in forward and again in backward
        (qkv, {"nf4": True}, Lives(196608, KEPT_BY_QKV, 371712, 73728)),
        (o, {"nf4": True}, Lives(196608, 73728, 279552, 49152)),
        (mlp, {"nf4": True}, Lives(524288, 233472, 674816, 106496)),
        (qkv, {"lora_bias": True}, Lives(118784, 118784, 261888, 75776)),
        (mlp, {"lora_bias": True}, Lives(299008, 233472, 407040, 111616)),
        # DoRA keeps each sum of base and adapter, and its scale
        (o, {"use_dora": True}, Lives(173056, 107520, 216064, 50688)),
        (qkv, {"use_dora": True}, Lives(317440, 186368, 375808, 76800)),
        (mlp, {"use_dora": True}, Lives(795648, 402432, 742400, 114176)),
    ],
)
def test_the_same_as_axolotls_code(kernel: Any, changes: dict[str, Any], expected: Lives) -> None:
    layer = make_layer(**changes)
    assert live([tensor(ROWS, TOKENS, WIDTH)], lambda x: kernel(layer, x)) == expected


def test_one_dropout_is_used_for_all_projections() -> None:
    # the input after dropout and a mask in its dtype (on a GPU one byte for each element, which is another rule)
    layers = [make_layer(nf4=True, lora_dropout=rate) for rate in (0.0, 0.1)]
    plain, dropped = (live([layer, tensor(ROWS, TOKENS, WIDTH)], qkv) for layer in layers)
    assert dropped.kept - plain.kept == 2 * X
    assert dropped.after == plain.after


@pytest.mark.parametrize(
    ("dora", "expected"),
    [(False, Lives(231424, 43712, 225984, 17792)), (True, Lives(263360, 110272, 359104, 19328))],
)
def test_embedding_works_in_fp32(dora: bool, expected: Lives) -> None:
    # ids [2, 32] are inputs here; axolotl's own figures, where they were made too, are 512 more
    layer = make_layer(use_dora=dora)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.int64, device="meta")
    assert live([ids], lambda ids: run_embedding(layer.embedding, ids)) == expected


@pytest.mark.parametrize(
    ("trains", "expected"),
    [(True, Lives(106496, 65536, 2007040, 819200)), (False, Lives(106496, 65536, 237568, 32768))],
)
def test_tiled_mlp(trains: bool, expected: Lives) -> None:
    # axolotl's monkeypatch/tiled_mlp/base.py with four tiles: only input and output are kept. A trained weight has its
    # sum (262,144), the gradient of a tile, and that of the tile before
    with torch.device("meta"):
        up, gate = (nn.Linear(WIDTH, INNER, bias=False, dtype=torch.bfloat16) for _ in "ug")
        down = nn.Linear(INNER, WIDTH, bias=False, dtype=torch.bfloat16)
    trained = [layer.weight.requires_grad_(trains) for layer in (gate, up, down)]

    def run(x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = down(nn.functional.silu(gate(x)) * up(x))
        return product

    lives = live([tensor(1, 64, WIDTH)], lambda x: TiledMlp.apply(run, x * 1, 4, trained if trains else []))
    assert lives == expected


@pytest.mark.parametrize(
    ("order", "names", "expected"),
    [
        # backward: what is kept, the output's gradient 32,768, that times B 64 x 8 x 2 = 1,024, the gradients of A and B
        # in fp32 2 x 8,192, and the input's 32,768
        ("o", ["o_proj"], Lives(74752, 73728, 73728 + 32768 + 1024 + 2 * 8192 + 32768, 49152)),
        # three outputs 65,536, three times B 3,072, A 3 x 8,192, B 8,192 + 2 x 4,096, the input's 32,768
        (
            "qkv",
            ["q_proj", "k_proj", "v_proj"],
            Lives(118784, KEPT_BY_QKV, KEPT_BY_QKV + 65536 + 3072 + 3 * 8192 + 16384 + 32768, 73728),
        ),
    ],
)
def test_wide_gradients_have_the_dtype_of_the_parameters(order: Any, names: list[str], expected: Lives) -> None:
    """axolotl 0.20 `_gradient_mm`: the gradients of fp32 adapters are products in fp32, and are not cast."""

    def run(layer: Any, x: torch.Tensor) -> Any:
        projections = [getattr(layer, name) for name in names]
        return run_projections(projections, x * 1, training=True, order=order, wide_gradients=True)

    layer = make_layer()
    assert live([tensor(ROWS, TOKENS, WIDTH)], lambda x: run(layer, x)) == expected
