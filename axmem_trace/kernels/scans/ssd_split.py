"""Mamba-2's training kernel: convolution, scan, gated norm and output projection as one function.

It keeps the projected input and the scan's output. Backward recomputes everything between them.
Source: mamba-ssm 2.3.2 `ops/triton/ssd_combined.py` (`MambaSplitConv1dScanCombinedFn`) and
`ops/triton/layernorm_gated.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.scans.causal_conv import conv_gradients
from axmem_trace.kernels.scans.layouts import dense_or_none, fp32, is_packed
from axmem_trace.kernels.scans.ssd import Given, Sizes, scan_forward, scan_gradients


@dataclass(frozen=True, slots=True)
class Layer:
    """The constants of a layer, for dividing and normalising the projected input."""

    heads: int
    head_dim: int
    groups: int
    chunk: int
    num_sms: int

    @property
    def dim(self) -> int:
        """The number of channels of the scan."""
        return self.heads * self.head_dim

    def split(self, zxbcdt: torch.Tensor, conv_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of the gate, of the convolution's input, and of the time steps."""
        gate, convolved, dt = zxbcdt.split([self.dim, conv_dim, self.heads], dim=-1)
        return gate, convolved, dt

    def scan_inputs(self, convolved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of x, B and C by heads and groups."""
        state_dim = (convolved.shape[-1] - self.dim) // 2
        x, B, C = convolved.split([self.dim, state_dim, state_dim], dim=-1)
        return x.unflatten(-1, (self.heads, -1)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))


class SplitConvScan(torch.autograd.Function):
    """Keeps its input, the scan's output, the norm's fp32 statistics, and the parameters (under autocast the cast
    copies)."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        zxbcdt: torch.Tensor,
        conv_weight: torch.Tensor,
        conv_bias: torch.Tensor | None,
        dt_bias: torch.Tensor,
        A: torch.Tensor,
        D: torch.Tensor,
        seq_idx: torch.Tensor | None,
        norm_weight: torch.Tensor | None,
        out_weight: torch.Tensor | None,
        out_bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.layer = layer
        gate, convolved, _ = layer.split(zxbcdt, conv_weight.shape[0])
        seq_idx = dense_or_none(seq_idx)
        convolved = torch.empty_like(_stride_of_eight(convolved).transpose(1, 2)).transpose(1, 2)
        x, B, C = layer.scan_inputs(convolved)
        z = gate.unflatten(-1, (layer.heads, -1)) if norm_weight is None else None
        out, ungated, values = scan_forward(Sizes.of(x, B, layer.chunk), x, B, C, z)
        kept, statistics = (out if ungated is None else ungated), None
        out = out.flatten(2)
        if norm_weight is not None:
            norm_weight = norm_weight.contiguous()
            out, statistics = torch.empty_like(out), fp32(x, layer.groups * x.shape[0] * x.shape[1])
        if out_weight is not None:
            out, out_weight, out_bias = _autocast(out, out_weight, out_bias)
            out = F.linear(out, out_weight, out_bias)
        parameters = (A, D, dt_bias, seq_idx, norm_weight, statistics, out_weight, out_bias)
        ctx.save_for_backward(zxbcdt, conv_weight, conv_bias, kept, *parameters)
        del values
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        layer: Layer = ctx.layer
        zxbcdt, conv_weight, conv_bias, kept, A, D, dt_bias, _, norm_weight, _, out_weight, out_bias = ctx.saved_tensors
        grad_out = outer_grad = grad_outputs[0]
        projects = out_weight is not None
        again = kept.new_empty((*kept.shape[:2], layer.dim)) if projects else None
        gate, convolved, dt = layer.split(zxbcdt, conv_weight.shape[0])
        remade = torch.empty_like(_stride_of_eight(convolved).transpose(1, 2)).transpose(1, 2)
        x, B, C = layer.scan_inputs(remade)
        input_grad = torch.empty_like(zxbcdt)
        gate_grad, conv_input_grad, dt_grad = layer.split(input_grad, conv_weight.shape[0])
        inner_grad = torch.empty_like(convolved)
        given = Given(*_by_name(layer.scan_inputs(inner_grad), dt_grad))
        if projects:
            grad_out = F.linear(grad_out, out_weight.t())
        z, norm_grad = None, None
        if norm_weight is None:
            z, given.z = gate.unflatten(-1, (layer.heads, -1)), gate_grad.unflatten(-1, (layer.heads, -1))
        normed_grad = grad_out  # noqa: F841  (a variable of its own there: alive until the end)
        if norm_weight is not None:
            grad_out, norm_grad = _norm_gradients(layer, kept, norm_weight)
        grad_out = grad_out.reshape(x.shape)
        found = scan_gradients(
            Sizes.of(x, B, layer.chunk),
            layer.num_sms,
            grad_out,
            (x, dt, A, B, C),
            D,
            z,
            dt_bias,
            given,
            recompute_output=projects and z is not None,
        )
        out_weight_grad, out_bias_grad = None, None
        if projects:
            remade_out = again if found.gated is None else found.gated.flatten(2)
            out_weight_grad = torch.einsum("bso,bsd->od", outer_grad, remade_out)
            out_bias_grad = None if out_bias is None else outer_grad.sum(dim=(0, 1))
        given_back = _stride_of_eight(conv_input_grad).transpose(1, 2)
        _, weight_grad, bias_grad = conv_gradients(
            _stride_of_eight(convolved).transpose(1, 2),
            conv_weight,
            conv_bias,
            _stride_of_eight(inner_grad).transpose(1, 2),
            given_back,
        )
        return (
            None,
            input_grad,
            weight_grad,
            bias_grad,
            found.dt_bias,
            found.A,
            found.D,
            None,
            norm_grad,
            out_weight_grad,
            out_bias_grad,
        )


def _by_name(
    scan_inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], dt: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, B, C = scan_inputs
    return x, dt, B, C


def _stride_of_eight(tensor: torch.Tensor) -> torch.Tensor:
    """`ensure_stride`: causal-conv1d reads channels-last memory only if a token's stride is a multiple of 8."""
    return tensor if tensor.stride(1) % 8 == 0 else tensor.contiguous()


def _autocast(
    out: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The function itself casts, and keeps the cast copies."""
    if not torch.is_autocast_enabled("cuda"):
        return out, weight, bias
    dtype = torch.get_autocast_dtype("cuda")
    return out.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _norm_gradients(layer: Layer, kept: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`_layer_norm_bwd`: writes dz and the recomputed output into existing memory, and allocates one partial sum per
    program."""
    grad = torch.empty_like(kept)
    group_size = layer.dim // layer.groups
    block = 1 << (group_size - 1).bit_length()
    warps = min(max(block // 256, 1), 8)
    programs = -(-layer.num_sms * -(-4 // warps) // layer.groups)
    partial = fp32(weight, programs, layer.dim)
    return grad, partial.sum(0).to(weight.dtype)


def mamba_split_conv1d_scan_combined(
    zxbcdt: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    chunk_size: int,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: torch.Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: torch.Tensor | None = None,
    outproj_bias: torch.Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    *,
    num_sms: int,
) -> torch.Tensor | None:
    """Same as `mamba_ssm.ops.triton.ssd_combined.mamba_split_conv1d_scan_combined`, without MLP channels in the input.

    Returns None if the output projection is quantised, as if the kernel were not installed. The kernel itself multiplies
    by `out_proj.weight`, and cannot read packed weights. axolotl 0.19 does the same for Nemotron-H
    (`monkeypatch/models/nemotron_h/modeling.py`, `guard_nemotron_h_fused_scan`).
    """
    if is_packed(outproj_weight):
        return None
    layer = Layer(len(D), headdim or D.shape[1], ngroups, chunk_size, num_sms)
    out: torch.Tensor = SplitConvScan.apply(
        layer, zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, seq_idx, rmsnorm_weight, outproj_weight, outproj_bias
    )
    return out
