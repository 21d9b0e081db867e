"""`fp8: true`: linear layers that multiply in float8 and keep their inputs in high precision, as torchao's without
torch.compile.

Source: torchao 0.17 `float8/float8_linear.py` (`matmul_with_hp_or_float8_args`, `Float8Linear`),
`float8_scaling_utils.py`, `float8_training_tensor.py` (`_ToFloat8ConstrFunc`), `float8_ops.py` (`preprocess_addmm`,
`addmm_float8_unwrapped`), `config.py` (`from_recipe_name`); accelerate 1.13 `utils/ao.py`, `accelerator.py`
`_prepare_ao`; axolotl 0.19 `core/fp8.py`, `monkeypatch/accelerate/float8_moe_filter.py`.

The graph keeps the input and the weight in high precision, as much as without fp8. Backward repeats the casts, each with two
temporary fp32 copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe

_ROUTERS = {"gate", "router"}
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class _Float8:
    """A tensor's bits and scale (`Float8TrainingTensor`)."""

    bits: torch.Tensor
    scale: torch.Tensor
    by_row: bool
    dtype: torch.dtype

    def t(self) -> _Float8:
        return _Float8(self.bits.t(), self.scale.t() if self.by_row else self.scale, self.by_row, self.dtype)


def convert_to_float8(model: nn.Module, recipe: Recipe, notes: Notes) -> None:
    """Replace linear layers as accelerate's `prepare` does: all except the first, the last, routers, and layers whose sizes
    are not multiples of 16.

    Raises:
        ConfigError: the base is quantised, so that torchao would multiply packed weights.
    """
    if not recipe.precision.fp8:
        return
    if recipe.quantisation.method != "none":
        raise ConfigError(
            problem=f"fp8 training replaces linear layers by layers that need plain weights, but the base model's are "
            f"packed ({recipe.quantisation.method}): the run fails in its first forward",
            key="fp8",
            remedy="remove fp8, or load the base model unquantised",
        )
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not linears:
        return
    first, *_, last = linears if len(linears) > 1 else [*linears, *linears]
    for name, module in linears.items():
        odd = module.in_features % 16 or module.out_features % 16
        if not odd and name not in (first, last) and _ROUTERS.isdisjoint(name.split(".")):
            module.__class__ = Float8Linear  # the weights, hooks and name stay, as in `from_float`
            module.float8_recipe = recipe.precision.fp8_recipe  # type: ignore[assignment]
    text = (
        "float8 layers run as in torchao 0.17 without torch.compile: backward keeps their inputs in half precision, and "
        "each cast makes two temporary fp32 copies of its tensor"
    )
    notes.append(Note(kind="ruled", key="fp8", text=text))


class Float8Linear(nn.Linear):
    """`nn.Linear`, multiplied in float8."""

    float8_recipe = "tensorwise"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """In autocast the input is cast, as in `F.linear`, but the weight is not."""
        if torch.is_autocast_enabled("cuda"):
            input = input.to(torch.get_autocast_dtype("cuda"))
        output: torch.Tensor = _Float8Product.apply(input, self.weight.t(), self.float8_recipe)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Float8Product(torch.autograd.Function):
    """The float8 product. Local variables keep tensors alive as long as in torchao's function: until it returns."""

    @staticmethod
    def forward(ctx: Any, input_hp: torch.Tensor, weight_hp_t: torch.Tensor, recipe: str) -> torch.Tensor:
        ctx.save_for_backward(input_hp, weight_hp_t)
        ctx.recipe = recipe
        by_row = recipe != "tensorwise"
        input_fp8 = _to_float8(input_hp, E4M3, -1 if by_row else None)
        weight_fp8_t = _to_float8(weight_hp_t, E4M3, 0 if by_row else None)
        result = _multiply(_flat(input_fp8), weight_fp8_t, fast=True)
        return result.reshape(*input_hp.shape[:-1], result.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        input_hp, weight_hp_t = ctx.saved_tensors
        by_row = ctx.recipe != "tensorwise"
        plain_weight_gradient = ctx.recipe == "rowwise_with_gw_hp"
        flat_output = grad_output.reshape(-1, grad_output.shape[-1])
        dtype = E4M3 if by_row else E5M2
        output_dim0 = _to_float8(flat_output, dtype, -1 if by_row else None)
        weight_t_dim0 = _to_float8(weight_hp_t, E4M3, -1 if by_row and not plain_weight_gradient else None)
        grad_input = _multiply(output_dim0, weight_t_dim0.t())
        grad_input = grad_input.reshape(*grad_output.shape[:-1], grad_input.shape[-1])
        flat_input = input_hp.reshape(-1, input_hp.shape[-1])
        if plain_weight_gradient:
            return grad_input, torch.mm(flat_output.t(), flat_input).t(), None
        output_dim1 = _to_float8(flat_output, dtype, 0 if by_row else None)
        input_dim1 = _to_float8(flat_input, E4M3, 0 if by_row else None)
        return grad_input, _multiply(output_dim1.t(), input_dim1).t(), None


def _flat(tensor: _Float8) -> _Float8:
    scale = tensor.scale.reshape(-1, 1) if tensor.by_row else tensor.scale
    return _Float8(tensor.bits.reshape(-1, tensor.bits.shape[-1]), scale, tensor.by_row, tensor.dtype)


def _to_float8(tensor: torch.Tensor, dtype: torch.dtype, dim: int | None) -> _Float8:
    """`hp_tensor_to_float8_dynamic`: the scale, the fp32 product with it, the clamped product, and its bits."""
    scale = _scale_of(tensor, dtype, dim)
    scaled = tensor.to(torch.float32) * scale
    return _Float8(_saturated(scaled, dtype), scale, dim is not None, tensor.dtype)


def _scale_of(tensor: torch.Tensor, dtype: torch.dtype, dim: int | None) -> torch.Tensor:
    magnitude = torch.abs(tensor)
    amax = torch.max(magnitude) if dim is None else torch.amax(magnitude, dim=dim, keepdim=True)
    del magnitude
    amax = amax.to(torch.float64)
    return (torch.finfo(dtype).max / torch.clamp(amax, min=_EPS)).to(torch.float32)


def _saturated(scaled: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limit = torch.finfo(dtype).max
    return scaled.clamp(min=-limit, max=limit).to(dtype)


def _multiply(a: _Float8, b: _Float8, *, fast: bool = False) -> torch.Tensor:
    """Multiplies two float8 tensors. cuBLAS needs the first operand row-major and the second column-major. Without fast
    accumulation, the output is multiplied by the row scales afterwards, as a full fp32 matrix."""
    a_bits = a.bits if _row_major(a.bits) else a.bits.contiguous()
    b_bits = b.bits.t().contiguous().t() if _row_major(b.bits) else b.bits
    a_scale, b_scale = _same_granularity(a, b, a_bits, b_bits)
    a_inverse, b_inverse = a_scale.reciprocal(), b_scale.reciprocal()
    by_row = a.by_row or b.by_row
    afterwards = None
    if by_row and not fast:
        afterwards = a_inverse * b_inverse
        a_inverse = b_inverse = a_inverse.new_ones(())
    dtype = torch.bfloat16 if by_row else a.dtype
    output = torch._scaled_mm(
        a_bits, b_bits, scale_a=a_inverse, scale_b=b_inverse, out_dtype=dtype, use_fast_accum=fast
    )
    if afterwards is not None:
        output *= afterwards
    return output.to(a.dtype)


def _same_granularity(
    a: _Float8, b: _Float8, a_bits: torch.Tensor, b_bits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if a.by_row and not b.by_row:
        return a.scale, b.scale.repeat(b_bits.shape[1]).reshape(1, -1)
    if b.by_row and not a.by_row:
        return a.scale.repeat(a_bits.shape[0]).reshape(-1, 1), b.scale
    return a.scale, b.scale


def _row_major(bits: torch.Tensor) -> bool:
    stride = bits.stride()
    return stride[0] > stride[1] and stride[1] == 1
