"""The parts of axolotl's LoRA kernels: a projection's weights, dequantisation, and the matmul with its adapter.

Source: axolotl 0.19 `kernels/lora.py` (`get_lora_parameters`, `matmul_lora`, `_lora_only`, `_compute_dora_scale`),
`kernels/quantize.py` (`dequantize`, `_ctypes_nf4_dequant`), `kernels/dora.py` (`triton_dora_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axmem_trace.models.quantisation.staged import is_staged, read_weight

DORA_CACHE = "_axmem_dora_norm"
"""The attribute of a magnitude vector that caches the norms for the latest version of the adapter, as in axolotl."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The part of a projection that autograd does not see: base weight, bias, quantisation state, LoRA scaling."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    quant_state: Any
    scaling: float
    wide_gradients: bool = False
    """The kernel returns the gradients of A and B in fp32, the parameters' dtype (axolotl 0.20 `_gradient_mm`)."""


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear layer, with or without an adapter."""

    frozen: Frozen
    lora_a: torch.Tensor | None = None
    lora_b: torch.Tensor | None = None
    lora_bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    dropout: nn.Module | None = None

    @classmethod
    def of(cls, frozen: Frozen, trained: tuple[torch.Tensor | None, ...]) -> Projection:
        """Make a projection from its frozen part and the tuple that `trained` returns."""
        lora_a, lora_b, lora_bias, magnitude = trained
        return cls(frozen, lora_a, lora_b, lora_bias, magnitude)

    @property
    def trained(self) -> tuple[torch.Tensor | None, ...]:
        """The tensors that autograd sees, in the order of the functions' arguments."""
        return self.lora_a, self.lora_b, self.lora_bias, self.magnitude


def read_projection(layer: Any, *, wide_gradients: bool = False) -> Projection:
    """The weights of a peft `lora.Linear`, or of a plain linear layer.

    Args:
        wide_gradients: gradients of fp32 adapters are computed in fp32.
    """
    linear = getattr(layer, "base_layer", layer)
    weight, quant_state = _read_weight(linear)
    if quant_state is None and weight.dtype == torch.float8_e4m3fn:
        quant_state = getattr(linear, "weight_scale_inv", None)
    if not hasattr(layer, "disable_adapters") or layer.disable_adapters or layer.merged:
        return Projection(Frozen(weight, linear.bias, quant_state, 1.0))
    name = layer.active_adapters[0]
    magnitudes = getattr(layer, "lora_magnitude_vector", None) or {}
    dropouts = dict(layer.lora_dropout.items())
    return Projection(
        Frozen(
            weight,
            linear.bias,
            quant_state,
            layer.scaling[name],
            wide_gradients and layer.lora_A[name].weight.dtype == torch.float32,
        ),
        lora_a=layer.lora_A[name].weight,
        lora_b=layer.lora_B[name].weight,
        lora_bias=layer.lora_B[name].bias,
        magnitude=magnitudes[name].weight if name in magnitudes else None,
        dropout=dropouts.get(name),
    )


def _read_weight(linear: Any) -> tuple[torch.Tensor, Any]:
    """The weight and its quantisation state. A staged weight is read unpacked, without a state."""
    if is_staged(linear):
        with torch.no_grad():
            return read_weight(linear), None
    return linear.weight, getattr(linear.weight, "quant_state", None)


def drop(projection: Projection, x: torch.Tensor, training: bool) -> torch.Tensor | None:
    """The adapter's input after dropout; None if there is no dropout. All projections of a kernel share one dropout."""
    if projection.dropout is None or isinstance(projection.dropout, nn.Identity) or not training:
        return None
    dropped: torch.Tensor = projection.dropout(x)
    return dropped


def dequantise(weight: torch.Tensor, quant_state: Any) -> torch.Tensor:
    """The weight in its compute dtype.

    For double quantisation each call computes the fp32 scales again; nothing is cached between calls. If a packed weight
    is passed transposed ([1, n]), the result is transposed too.
    """
    if quant_state is None:
        return weight
    if weight.dtype == torch.float8_e4m3fn:
        return _dequantise_fp8(weight, quant_state)
    if quant_state.offset is None or quant_state.state2 is None:
        import bitsandbytes.functional as bnb

        plain: torch.Tensor = bnb.dequantize_4bit(weight, quant_state, quant_type=quant_state.quant_type)
        return plain
    out = torch.empty(tuple(quant_state.shape), dtype=quant_state.dtype, device=weight.device)
    scales = torch.empty(quant_state.absmax.numel(), dtype=torch.float32, device=weight.device)
    scales += quant_state.offset
    return out.t() if weight.shape[0] == 1 else out


def _dequantise_fp8(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`dequantize_fp8`: a bf16 copy, then the product with its block scales."""
    if not weight.is_contiguous() and weight.dim() == 2:
        return _dequantise_fp8(weight.t(), scales).t()
    wide = weight.to(torch.bfloat16)
    narrow = scales.to(torch.bfloat16)
    scaled = torch.empty_like(wide)
    del narrow
    return scaled


def project(
    x: torch.Tensor,
    projection: Projection,
    x_dropped: torch.Tensor | None = None,
    *,
    with_adapter: bool = True,
    transposed: bool = False,
) -> torch.Tensor:
    """`matmul_lora`: x [..., in] to [..., out], base and adapter in one tensor.

    Args:
        with_adapter: False: only the base without bias, which DoRA needs.
        transposed: the direction of the gradient, [..., out] to [..., in].
    """
    frozen = projection.frozen
    lora_a, lora_b = projection.lora_a, projection.lora_b
    dtype, shape = x.dtype, x.shape
    weight = dequantise(frozen.weight if transposed else frozen.weight.t(), frozen.quant_state)
    x = x.reshape(-1, shape[-1])
    out = torch.matmul(x, weight)
    if frozen.quant_state is not None:
        del weight
    if with_adapter and lora_a is not None and lora_b is not None:
        into = x if x_dropped is None else x_dropped.reshape(-1, shape[-1])
        first, second = (lora_b, lora_a) if transposed else (lora_a.t(), lora_b.t())
        first, second = first.to(dtype), second.to(dtype)
        out.addmm_(into @ first, second.to(out.dtype), alpha=frozen.scaling)
        if projection.lora_bias is not None and not transposed:
            out += frozen.scaling * projection.lora_bias
    if with_adapter and frozen.bias is not None and not transposed:
        out += frozen.bias
    return out.view(*shape[:-1], -1)


def adapter_output(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """`_lora_only`: only the adapter's part."""
    lora_a, lora_b = projection.lora_a, projection.lora_b
    assert lora_a is not None
    assert lora_b is not None
    flat = x.reshape(-1, x.shape[-1])
    first, second = lora_a.t().to(x.dtype), lora_b.t().to(x.dtype)
    out = projection.frozen.scaling * flat @ first @ second
    if projection.lora_bias is not None:
        out = out + projection.frozen.scaling * projection.lora_bias
    return out.view(*x.shape[:-1], -1)


def dora_scale(projection: Projection, dtype: torch.dtype) -> torch.Tensor:
    """`_compute_dora_scale` with its Triton kernel: magnitude divided by the norm of base and adapter, [out].

    The norms are stored on the magnitude until the adapter's weights change. So a recomputation uses them again.
    """
    frozen, lora_a, lora_b, magnitude = projection.frozen, projection.lora_a, projection.lora_b, projection.magnitude
    assert lora_a is not None
    assert lora_b is not None
    assert magnitude is not None
    versions = (lora_a._version, lora_b._version)
    cached = getattr(magnitude, DORA_CACHE, None)
    if cached is not None and cached[0] == versions:
        return magnitude.to(dtype) / cached[1]
    weight = dequantise(frozen.weight.t(), frozen.quant_state).t().contiguous().to(dtype)
    scale = torch.empty(weight.shape[0], dtype=dtype, device=weight.device)
    halves = (lora_b.contiguous().to(dtype), lora_a.contiguous().to(dtype))
    del halves, weight
    setattr(magnitude, DORA_CACHE, (versions, (magnitude.to(dtype) / scale).detach()))
    return scale.detach()
