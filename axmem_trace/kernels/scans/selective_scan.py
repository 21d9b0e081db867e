"""Mamba-1's scan: it keeps one fp32 state per 2048 tokens; the loop in Python keeps one per token.

Source: mamba-ssm 2.3.2 `ops/selective_scan_interface.py` (`SelectiveScanFn`, `MambaInnerFn`) and
`csrc/selective_scan/selective_scan.cpp` (`selective_scan_fwd`, `selective_scan_bwd`).
"""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.kernels.scans.layouts import last_dim_dense, num_chunks

CHUNK = 2048
"""Tokens per kept state (`n_chunks` in selective_scan.cpp)."""


class SelectiveScan(torch.autograd.Function):
    """Keeps every input in the layout that the kernel reads (last dimension dense), the states and the output."""

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        z: torch.Tensor | None,
        delta_bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        u, delta, B, C = (last_dim_dense(each) for each in (u, delta, B, C))
        z = None if z is None else last_dim_dense(z)
        D = None if D is None else D.contiguous()
        out, states, gated = scan_forward(u, delta, A, z)
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, None if z is None else out)
        last_state = states[:, :, -1, 1::2]
        ctx.mark_non_differentiable(last_state)
        ctx.set_materialize_grads(False)
        return (out if gated is None else gated), last_state

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        u, delta, A, B, C, D, z, delta_bias, _, _ = ctx.saved_tensors
        grad_out = last_dim_dense(grad_outputs[0])  # noqa: F841  (alive while the kernel runs)
        z_grad = None if z is None else torch.empty_like(z)
        return _in_order(scan_gradients(u, delta, A, B, C, D, delta_bias), z_grad)


def _in_order(gradients: tuple[torch.Tensor | None, ...], z_grad: torch.Tensor | None) -> Any:
    """The gradients in the order of the inputs: z is between D and the bias."""
    return *gradients[:6], z_grad, gradients[6]


def scan_forward(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, z: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The allocations of `selective_scan_fwd`: output, states in A's dtype (two values each), gated output."""
    gated = None if z is None else torch.empty_like(z)
    out = torch.empty_like(delta)
    batch, dim, seqlen = u.shape
    states = u.new_empty((batch, dim, num_chunks(seqlen, CHUNK), 2 * A.shape[1]), dtype=A.dtype)
    return out, states, gated


def scan_gradients(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """The allocations of `selective_scan_bwd`, except dz. The gradients of B and C are summed in fp32 and then cast."""
    u_grad, delta_grad, a_grad = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(A)
    b_sum, c_sum = torch.empty_like(B, dtype=torch.float32), torch.empty_like(C, dtype=torch.float32)
    d_grad = None if D is None else torch.empty_like(D)
    bias_grad = None if delta_bias is None else torch.empty_like(delta_bias)
    return u_grad, delta_grad, a_grad, b_sum.to(B.dtype), c_sum.to(C.dtype), d_grad, bias_grad


def selective_scan_fn(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """Same as `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`."""
    out, last_state = SelectiveScan.apply(u, delta, A, B, C, D, z, delta_bias)
    return (out, last_state) if return_last_state else out
