"""`qat`: linear layers (and embeddings) that quantise and dequantise weights and inputs in their forward.

Source: torchao 0.17 `quantization/qat/{linear,embedding,fake_quantizer}.py`, `quant_primitives.py`
(`_do_fake_quantize_affine`, `_choose_scale_float8`, `_quantize_affine_float8`, `_dequantize_affine_float8`,
`_choose_qparams_affine`); axolotl 0.19 `utils/quantization.py` `prepare_model_for_qat`, `_make_qat_config`. Everything
consists of plain operators that autograd sees, most of them in fp32. The tensors that they keep for backward are recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import FakeQuantisation, Recipe

_Quantise = Callable[[torch.Tensor], torch.Tensor]
_E4M3 = torch.float8_e4m3fn


def prepare_fake_quantisation(model: nn.Module, recipe: Recipe, notes: Notes) -> None:
    """Replace all linear layers, including the head, and embeddings if that is requested.

    Raises:
        ConfigError: a layer's width is not a multiple of the group size, so its weight can't be viewed in groups.
    """
    asked = recipe.fake_quantisation
    if asked is None:
        return
    weight, inputs = _of_weight(asked), _of_inputs(asked)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            _swap(module, FakeQuantisedLinear, name, asked, weight=weight, inputs=inputs)
        elif asked.embeddings and isinstance(module, nn.Embedding):
            _swap(module, FakeQuantisedEmbedding, name, asked, weight=_of_weight_alone(asked), inputs=None)
    text = "fake quantisation runs as in torchao 0.17, operator by operator: the fp32 tensors that it keeps are counted"
    notes.append(Note(kind="ruled", key="qat", text=text))


class FakeQuantisedLinear(nn.Linear):
    """`nn.Linear` whose weight and inputs are quantised and dequantised."""

    quantise_weight: _Quantise
    quantise_inputs: _Quantise | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Quantises the inputs first, then the weight."""
        if self.quantise_inputs is not None:
            input = self.quantise_inputs(input)
        return F.linear(input, self.quantise_weight(self.weight), self.bias)


class FakeQuantisedEmbedding(nn.Embedding):
    """The whole table is quantised and dequantised, even if only a few rows are needed."""

    quantise_weight: _Quantise

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows of the table that was quantised and dequantised."""
        table = self.quantise_weight(self.weight)
        return F.embedding(input, table, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq)


def _swap(
    module: Any, cls: type, name: str, asked: FakeQuantisation, *, weight: _Quantise, inputs: _Quantise | None
) -> None:
    """Changes the module's class. torchao creates a complete new layer on the GPU before it assigns the old weight to it."""
    if asked.weight == "int4" and module.weight.shape[-1] % asked.group_size:
        raise ConfigError(
            problem=f"the width of {name}, {module.weight.shape[-1]}, is not a multiple of the group size: the run fails "
            "in its first forward",
            key="qat.group_size",
            value=asked.group_size,
            remedy="choose a group_size that divides every layer's width",
        )
    _made = torch.empty_like(module.weight)
    module.__class__ = cls
    module.quantise_weight, module.quantise_inputs = weight, inputs


def _of_weight(asked: FakeQuantisation) -> _Quantise:
    if asked.weight == "float8":
        return _float8_by_row
    if asked.activation == "int8":
        return lambda weight: _int4_for_bf16_inputs(weight, asked.group_size)
    return _of_weight_alone(asked)


def _of_weight_alone(asked: FakeQuantisation) -> _Quantise:
    return lambda weight: _int4_for_float8_inputs(weight, asked.group_size)


def _of_inputs(asked: FakeQuantisation) -> _Quantise | None:
    return {"int8": _int8_by_token, "float8": _float8_by_row}.get(asked.activation)


class _Round(torch.autograd.Function):
    """Rounds. Backward returns the gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        return torch.round(tensor) if dtype is None else tensor.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None


def _float8_by_row(tensor: torch.Tensor) -> torch.Tensor:
    """`Float8FakeQuantizer`, `PerRow`."""
    scale = _float8_scale(tensor)
    return _from_float8(_to_float8(tensor, scale), scale, tensor.dtype)


def _float8_scale(tensor: torch.Tensor, lowest: float | None = None) -> torch.Tensor:
    largest = tensor.abs().amax(dim=-1, keepdim=True)
    if lowest is not None:
        largest = torch.clamp(largest, min=lowest)
    scale = largest / torch.finfo(_E4M3).max
    return scale.to(dtype=torch.float32)


def _to_float8(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    limit = torch.finfo(_E4M3).max
    tensor_fp32 = tensor.to(torch.float32)
    scaled = tensor_fp32 / scale
    clamped = scaled.clamp(min=-limit, max=limit)
    bits: torch.Tensor = _Round.apply(clamped, _E4M3)
    return bits


def _from_float8(bits: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bits_fp32 = bits.to(torch.float32)
    values = bits_fp32 * scale
    return values.to(dtype)


def _int8_by_token(tensor: torch.Tensor) -> torch.Tensor:
    """`IntxFakeQuantizer`, asymmetric, one scale per token."""
    with torch.no_grad():
        low, high = tensor.amin(dim=-1), tensor.amax(dim=-1)
        low, high = torch.min(low, torch.zeros_like(low)), torch.max(high, torch.zeros_like(high))
        scale = torch.clamp((high - low) / 255.0, min=1e-5)
        zero_point = torch.clamp(-128 - torch.round(low / scale), -128, 127)
        scale, zero_point = scale.to(torch.float32).unsqueeze(-1), zero_point.to(torch.int32).unsqueeze(-1)
    return _there_and_back(tensor, scale, zero_point, (-128, 127))


def _int4_for_float8_inputs(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """`Int4WeightFakeQuantizer._fp8_activations_forward`: rounds to float8 by row, then to 4 bits by group."""
    scale = _float8_scale(weight, lowest=1e-12)
    rounded = _to_float8(weight, scale)
    rounded = _from_float8(rounded, scale, weight.dtype)
    grouped = rounded.view(rounded.shape[0], -1, group_size)
    largest = torch.amax(torch.abs(grouped), dim=-1, keepdim=False)
    group_scale = torch.clamp(largest / 8, min=1e-6)
    zero_point = torch.zeros_like(group_scale)
    back = _there_and_back(grouped, group_scale.unsqueeze(-1), zero_point.unsqueeze(-1), (-8, 7))
    return back.view(weight.shape).to(weight.dtype)


def _int4_for_bf16_inputs(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """`Int4WeightFakeQuantizer._bf16_activations_forward`: all of it in fp32."""
    grouped = weight.to(torch.float32).view(weight.shape[0], -1, group_size)
    high = torch.amax(grouped, dim=-1, keepdim=True)
    low = torch.amin(grouped, dim=-1, keepdim=True)
    scale = torch.clamp(high - low, min=1e-6) / 15
    zero_point = low + scale * 8
    back = _Round.apply((grouped - low) / scale, None).clamp(0, 15)
    back = back - 8
    back = back * scale + zero_point
    return back.view(weight.shape).to(weight.dtype)


def _there_and_back(
    tensor: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bounds: tuple[int, int]
) -> torch.Tensor:
    quantised = torch.clamp(_Round.apply(tensor * (1.0 / scale), None) + zero_point, *bounds)
    back = quantised.to(tensor.dtype, copy=True)
    back = back - zero_point.to(tensor.dtype)
    back = back * scale
    return back.view(tensor.shape).to(tensor.dtype)
