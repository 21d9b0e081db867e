"""`Linear4bit`, compared with arithmetic by hand. Sources: bitsandbytes 0.50 `autograd/_functions.py` (`MatMul4Bit`),
`backends/cuda/ops.py` (`gemm_4bit`, `_dequant_linear_fallback`), `functional.py` (`dequantize_4bit`). All layers have
256 input and 512 output features, so 131,072 weights in 2048 blocks of 64; 2000 tokens unless stated otherwise."""

from __future__ import annotations

import pytest
import torch
from support.bnb_layer_probe import make_4bit, probe

H100 = (9, 0)
INPUT, OUTPUT = 1_024_000, 2_048_000  # bf16: 2000 * 256 * 2 and 2000 * 512 * 2
WEIGHT = 262_144  # bf16: 512 * 256 * 2
SCALES = 8_192  # fp32: one per block, 2048 * 4


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_forward_unpacks_the_weight_and_its_scales(quant_type: str):
    seen = probe(make_4bit(256, 512, quant_type=quant_type), 1, 2000, 256)
    # two fp32 copies of the scales (unpacked; with the offset added), the weight in bf16, the output
    assert seen.forward_peak == INPUT + 2 * SCALES + WEIGHT + OUTPUT
    assert seen.kept == [OUTPUT]  # neither the input nor the weight: only the adapter is trained


def test_backward_unpacks_it_again():
    seen = probe(make_4bit(256, 512), 1, 2000, 256)
    # the scales are freed before the weight's product with the gradient, and the weight is freed before the probe's neg
    assert seen.backward_peak == max(WEIGHT + INPUT, 2 * INPUT)
    # many input and few output features: 4096 * 64 * 2 = 524,288; the input's gradient 10 * 4096 * 2
    assert probe(make_4bit(4096, 64), 1, 10, 4096).backward_peak == 524_288 + 81_920
    # ... unless the weight is first unpacked as fp32: then its two copies exist at the same time, and the offset is
    # added in place
    wide = probe(make_4bit(4096, 64, loaded=torch.float32), 1, 10, 4096)
    assert wide.backward_peak == 1_048_576 + 524_288


def test_without_double_quantisation_scales_are_stored_unpacked():
    seen = probe(make_4bit(256, 512, double_quant=False), 1, 2000, 256)
    assert seen.forward_peak == INPUT + WEIGHT + OUTPUT


def test_few_tokens_are_multiplied_packed():
    # up to 4 tokens always (`_GEMM_4BIT_CUSTOM_FLOOR_M`), above 1536 never; between these it depends on card and shape
    assert probe(make_4bit(256, 512), 1, 4, 256).forward_peak == 4 * 256 * 2 + 4 * 512 * 2
    # 8 blocks of 64 rows are less than a quarter wave of 108 and of 132 SMs. 256 * 2 >= 512, so not "very short K":
    # an A100 multiplies packed weights up to 384 tokens if K < N, an H100 up to 32
    packed, unpacked = 300 * 256 * 2 + 300 * 512 * 2, 300 * 256 * 2 + 300 * 512 * 2 + 2 * SCALES + WEIGHT
    assert probe(make_4bit(256, 512), 1, 300, 256).forward_peak == packed
    assert probe(make_4bit(256, 512), 1, 300, 256, capability=H100).forward_peak == unpacked


def test_autocast_reduces_fp32_compute():
    layer = make_4bit(256, 512, compute_dtype=torch.float32, loaded=torch.float32)
    # the input in bf16 and cast to fp32; scales; the weight in fp32, and autocast's bf16 copies of both; the output
    seen = probe(layer, 1, 2000, 256, autocast=True)
    assert seen.forward_peak == INPUT + 2 * INPUT + 2 * SCALES + 2 * WEIGHT + INPUT + WEIGHT + OUTPUT
    # without autocast the output is fp32, then cast back to the input's bf16
    seen = probe(layer, 1, 2000, 256)
    assert seen.forward_peak == max(
        INPUT + 2 * INPUT + 2 * SCALES + 2 * WEIGHT + 2 * OUTPUT, INPUT + 2 * INPUT + 2 * OUTPUT + OUTPUT
    )
    assert seen.kept == [OUTPUT]
