"""Mamba-1's training kernel: convolution, projections, scan and output projection as one function.

It keeps the projected input, B, C, the states and the scan's output. Backward recomputes the convolution and the time
steps. Source: mamba-ssm 2.3.2 `ops/selective_scan_interface.py` (`MambaInnerFn`, at its checkpoint level 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from axmem_trace.kernels.scans.causal_conv import conv_gradients
from axmem_trace.kernels.scans.layouts import dense_or_none, fp32, is_packed, last_dim_dense
from axmem_trace.kernels.scans.selective_scan import scan_forward, scan_gradients


@dataclass(frozen=True, slots=True)
class Norms:
    """Which of B, C and the time steps are normalised inside the kernel (FalconMamba: all)."""

    B: bool
    C: bool
    dt: bool


class MambaInner(torch.autograd.Function):
    """Under autocast the function itself casts the weights, and keeps the cast copies."""

    @staticmethod
    def forward(
        ctx: Any,
        norms: Norms,
        xz: torch.Tensor,
        conv_weight: torch.Tensor,
        conv_bias: torch.Tensor | None,
        x_weight: torch.Tensor,
        dt_weight: torch.Tensor,
        out_weight: torch.Tensor,
        out_bias: torch.Tensor | None,
        A: torch.Tensor,
        D: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        *norm_weights: torch.Tensor | None,
    ) -> torch.Tensor:
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            x_weight, dt_weight, out_weight = x_weight.to(dtype), dt_weight.to(dtype), out_weight.to(dtype)
            out_bias = None if out_bias is None else out_bias.to(dtype)
        xz = last_dim_dense(xz)
        rows, length, state = xz.shape[0], xz.shape[-1], A.shape[1]
        rank = dt_weight.shape[1]
        conv_weight, conv_bias, D = conv_weight.squeeze(1), dense_or_none(conv_bias), dense_or_none(D)
        x, z = xz.chunk(2, dim=1)
        convolved = torch.empty_like(x)
        mixed = F.linear(_rows(convolved), x_weight)
        dt = _by_sample(dt_weight @ mixed[:, :rank].t(), length)
        B = _state_first(mixed[:, rank : rank + state], rows)
        C = _state_first(mixed[:, -state:], rows)
        B, C = (_normed_state(each) if norm else each for each, norm in ((B, norms.B), (C, norms.C)))
        if norms.dt:
            dt = _rows(dt)
            dt = _normed_steps(dt, rows)
        out, states, gated = scan_forward(convolved, dt, A, z)
        del convolved, dt
        ctx.norms = norms
        ctx.save_for_backward(
            xz,
            conv_weight,
            conv_bias,
            mixed,
            x_weight,
            dt_weight,
            out_weight,
            A,
            B,
            C,
            D,
            dt_bias,
            states,
            out,
            out_bias,
            *norm_weights,
        )
        return F.linear(_required(gated).transpose(1, 2), out_weight, out_bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (xz, conv_weight, conv_bias, mixed, _, dt_weight, out_weight, A, B, C, D, dt_bias, _, out, out_bias, *_) = (
            ctx.saved_tensors
        )
        length, rank, state = xz.shape[-1], dt_weight.shape[1], A.shape[1]
        x = xz.chunk(2, dim=1)[0]
        grad_out = last_dim_dense(grad_outputs[0])
        convolved = torch.empty_like(x)
        dt = _by_sample(dt_weight @ mixed[:, :rank].t(), length)
        if ctx.norms.dt:
            dt = _rows(dt)
            dt = _normed_steps(dt, len(xz))
        B, C = (_normed_state(each) if norm else each for each, norm in ((B, ctx.norms.B), (C, ctx.norms.C)))
        xz_grad = torch.empty_like(xz)
        x_grad = xz_grad.chunk(2, dim=1)[0]
        grad_out = grad_out.permute(2, 0, 1).reshape(grad_out.shape[-1], -1)
        gated_grad = _by_sample(out_weight.t() @ grad_out, length)
        gated = torch.empty_like(out)
        u_grad, dt_grad, a_grad, b_grad, c_grad, d_grad, bias_grad = scan_gradients(convolved, dt, A, B, C, D, dt_bias)
        out_weight_grad = torch.einsum("eB,dB->ed", grad_out, _channels_first(gated))
        out_bias_grad = None if out_bias is None else grad_out.sum(dim=(0, 1))
        mixed_grad = torch.empty_like(mixed)
        mixed_grad[:, rank : rank + state] = _rows_of_state(_required(b_grad))
        del b_grad
        mixed_grad[:, -state:] = _rows_of_state(_required(c_grad))
        del c_grad
        dt_grad = _channels_first(_required(dt_grad))
        dt_weight_grad = torch.einsum("dB,Br->dr", dt_grad, mixed_grad[:, :rank])
        mixed_grad[:, :rank] = torch.einsum("dB,dr->Br", dt_grad, dt_weight)
        u_grad = _channels_first(_required(u_grad))
        x_weight_grad = torch.einsum("Br,Bd->rd", mixed_grad, _rows(convolved))
        u_grad = _by_sample(u_grad, length)  # added to in place
        _, conv_weight_grad, conv_bias_grad = conv_gradients(x, conv_weight, conv_bias, u_grad, x_grad)
        del gated_grad, gated
        return (
            None,
            xz_grad,
            conv_weight_grad.unsqueeze(1),
            conv_bias_grad,
            x_weight_grad,
            dt_weight_grad,
            out_weight_grad,
            out_bias_grad,
            a_grad,
            d_grad,
            bias_grad,
            None,
            None,
            None,
        )


def _required(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, channels, length] as one row per token: a copy."""
    return tensor.transpose(1, 2).reshape(-1, tensor.shape[1])


def _channels_first(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, channels, length] as one row per channel: a copy if there are several samples."""
    return tensor.transpose(0, 1).reshape(tensor.shape[1], -1)


def _by_sample(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """[channels, tokens] as [batch, channels, length]: a view."""
    return tensor.unflatten(1, (-1, length)).transpose(0, 1)


def _state_first(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """[tokens, state] as [batch, 1, state, length], contiguous."""
    return rows.unflatten(0, (batch, -1)).transpose(1, 2).unsqueeze(1).contiguous()


def _rows_of_state(tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `_state_first`, as a contiguous tensor."""
    return tensor.squeeze(1).transpose(1, 2).reshape(-1, tensor.shape[2]).contiguous()


def _normed_state(tensor: torch.Tensor) -> torch.Tensor:
    """Converts to rows, normalises them (`rms_norm_forward`), and converts back to the original layout."""
    rows = _rows_of_state(tensor)
    normed, _ = torch.empty_like(rows), fp32(rows, len(rows))
    return _state_first(normed, len(tensor))


def _normed_steps(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Converts the time steps to one row per token, normalises them, and converts back to [batch, channels, length]."""
    normed, statistics = torch.empty_like(rows), fp32(rows, len(rows))
    del statistics
    return normed.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def mamba_inner_fn(
    xz: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    x_proj_weight: torch.Tensor,
    delta_proj_weight: torch.Tensor,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor | None = None,
    C: torch.Tensor | None = None,
    D: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = True,
    b_rms_weight: torch.Tensor | None = None,
    c_rms_weight: torch.Tensor | None = None,
    dt_rms_weight: torch.Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> torch.Tensor | None:
    """Same as `mamba_ssm.ops.selective_scan_interface.mamba_inner_fn` with B and C computed from the input.

    Returns None if a projection is quantised, as if the kernel were not installed. The kernel itself multiplies by the
    weights, and cannot read packed weights.
    """
    if any(is_packed(weight) for weight in (x_proj_weight, delta_proj_weight, out_proj_weight)):
        return None
    norm_weights = (b_rms_weight, c_rms_weight, dt_rms_weight)
    norms = Norms(*(weight is not None for weight in norm_weights))
    out: torch.Tensor = MambaInner.apply(
        norms,
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        out_proj_weight,
        out_proj_bias,
        A,
        D,
        delta_bias,
        *norm_weights,
    )
    return out
