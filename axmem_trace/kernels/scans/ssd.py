"""Mamba-2's chunked scan (SSD): keeps inputs, output and the decay's sums. Chunk states are freed when it returns.

Source: mamba-ssm 2.3.2 `ops/triton/ssd_combined.py` (`_mamba_chunk_scan_combined_fwd` and `_bwd`,
`MambaChunkScanCombinedFn`) with the allocations of `ssd_chunk_state.py`, `ssd_state_passing.py`, `ssd_bmm.py` and
`ssd_chunk_scan.py`. Blocks are allocated in the order of that code, and freed when its variables go out of scope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from axmem_trace.kernels.scans.layouts import dense_along, fp32, last_dim_dense, num_chunks

_MIN_BLOCK = 32
"""Rows per partial sum of the gradients of D and of the decay, before autotuning."""
_STATE_BLOCK = 64
"""State elements per partial sum in `_state_passing_bwd`."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes in the kernels' shapes."""

    batch: int
    seqlen: int
    heads: int
    head_dim: int
    groups: int
    state: int
    chunk: int

    @classmethod
    def of(cls, x: torch.Tensor, B: torch.Tensor, chunk: int) -> Sizes:
        """The sizes of `x` [batch, seqlen, heads, head_dim] and `B` [batch, seqlen, groups, state]."""
        batch, seqlen, heads, head_dim = x.shape
        return cls(batch, seqlen, heads, head_dim, B.shape[2], B.shape[3], chunk)

    @property
    def chunks(self) -> int:
        """The number of chunks of the sequence. The last one may be partly filled."""
        return num_chunks(self.seqlen, self.chunk)

    @property
    def per_token(self) -> tuple[int, ...]:
        """The shape of time steps and of the decay's sums: one value per head and token, in chunks."""
        return self.batch, self.heads, self.chunks, self.chunk

    @property
    def states(self) -> tuple[int, ...]:
        """The shape of the states: one per chunk and head."""
        return self.batch, self.chunks, self.heads, self.head_dim, self.state

    def splits(self, num_sms: int) -> int:
        """The number of partial sums over the heads of a group, chosen so that every multiprocessor has work."""
        ratio = self.heads // self.groups
        heads_per_program = max(min(-(-self.batch * self.chunks * self.heads // num_sms), ratio), 1)
        return num_chunks(ratio, heads_per_program)


def scan_forward(
    sizes: Sizes, x: torch.Tensor, B: torch.Tensor, C: torch.Tensor, z: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """Output, output before the gate (None without a gate), and the tensors that variables of the caller keep until it
    returns: first the sums of the decay, then the time steps, states and final states."""
    B, C, x = last_dim_dense(B), last_dim_dense(C), dense_along(x, -1, 1)
    z = None if z is None else dense_along(z, -1, 1)
    decay, steps = fp32(x, *sizes.per_token), fp32(x, *sizes.per_token)
    states = fp32(x, *sizes.states)
    passed, final = x.new_empty(sizes.states, dtype=C.dtype), fp32(x, sizes.batch, *sizes.states[2:])
    del states
    scores = fp32(x, sizes.batch, sizes.chunks, sizes.groups, sizes.chunk, sizes.chunk)
    shape = (sizes.batch, sizes.seqlen, sizes.heads, sizes.head_dim)
    out = x.new_empty(shape)
    ungated = None if z is None else x.new_empty(shape)
    del scores
    return out, ungated, (decay, steps, passed, final)


@dataclass(slots=True)
class Given:
    """Memory that the caller of backward has allocated for gradients. If None, the kernel allocates it."""

    x: torch.Tensor | None = None
    dt: torch.Tensor | None = None
    B: torch.Tensor | None = None
    C: torch.Tensor | None = None
    z: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Gradients:
    """The result of `_mamba_chunk_scan_combined_bwd`. `gated` is the recomputed output, if it was requested."""

    x: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    z: torch.Tensor | None
    dt_bias: torch.Tensor | None
    gated: torch.Tensor | None


def scan_gradients(
    sizes: Sizes,
    num_sms: int,
    grad_out: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    given: Given,
    *,
    recompute_output: bool = False,
) -> Gradients:
    """The allocations of `_mamba_chunk_scan_combined_bwd`: the forward's blocks again, then one gradient after another.

    Args:
        inputs: x, dt, A, B and C.
    """
    x, dt, A, B, C = inputs
    grad_out = last_dim_dense(grad_out)
    b_grad = torch.empty_like(B) if given.B is None else given.B
    c_grad = torch.empty_like(C) if given.C is None else given.C
    dt_grad = torch.empty_like(dt) if given.dt is None else given.dt
    dt_in = dt.clone()  # noqa: F841  (alive until the end, as the next two)
    decay, steps = fp32(x, *sizes.per_token), fp32(x, *sizes.per_token)  # noqa: F841
    scores = fp32(x, sizes.batch, sizes.chunks, sizes.groups, sizes.chunk, sizes.chunk)
    passed, _final = _passed_states(sizes, x)
    z_grad, gated, d_grad_of_gate = None, None, None
    if z is not None:
        z_grad, grad_out, d_grad_of_gate, gated = _gate_gradient(sizes, x, z, grad_out, D, given.z, recompute_output)
    state_grad, state_copy, chunk_decay_grad = _state_gradients(sizes, x, passed)
    del passed
    d_sum = None if D is None else _partial_sums_of_d(sizes, D)
    x_grad = torch.empty_like(x) if given.x is None else given.x
    step_grad = fp32(x, *sizes.per_token)
    d_grad = None if d_sum is None or D is None else _summed(d_sum, D)  # also if the gate's kernel has computed one
    del d_sum
    splits = sizes.splits(num_sms)
    b_sum, next_grad = _split_sum(sizes, x, splits), fp32(x, *sizes.per_token)
    c_sum, previous_grad = _split_sum(sizes, x, splits), fp32(x, *sizes.per_token)
    score_sum = fp32(x, sizes.batch, sizes.chunks, splits, *scores.shape[2:]).sum(2)  # noqa: F841
    previous_sum = previous_grad.flip([-1]).cumsum(dim=-1).flip([-1])
    decay_grad = fp32(x, *sizes.per_token[:3], num_chunks(sizes.chunk, _MIN_BLOCK), sizes.chunk).sum(dim=3)
    decay_grad += next_grad + previous_sum
    bias_grad = None if dt_bias is None else torch.empty_like(dt_bias, dtype=torch.float32)
    a_grad = torch.empty_like(A, dtype=torch.float32)
    del b_sum, c_sum, state_grad, state_copy, chunk_decay_grad, step_grad, d_grad_of_gate
    return Gradients(x_grad, dt_grad, a_grad, b_grad, c_grad, d_grad, z_grad, bias_grad, gated)


def _passed_states(sizes: Sizes, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states that enter each chunk, and the final states. In backward they stay in fp32."""
    states = fp32(x, *sizes.states)
    passed, final = fp32(x, *sizes.states), fp32(x, sizes.batch, *sizes.states[2:])
    del states
    return passed, final


def _gate_gradient(
    sizes: Sizes,
    x: torch.Tensor,
    z: torch.Tensor,
    grad_out: torch.Tensor,
    D: torch.Tensor | None,
    z_grad: torch.Tensor | None,
    recompute_output: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`_chunk_scan_bwd_dz`: the gradients of z, of the output before the gate and of D, and the recomputed output."""
    d_sum = None if D is None else _partial_sums_of_d(sizes, D)
    z_grad = torch.empty_like(z) if z_grad is None else z_grad
    gated = torch.empty_like(x) if recompute_output else None
    inner_grad = torch.empty_like(grad_out)
    return z_grad, inner_grad, None if d_sum is None or D is None else _summed(d_sum, D), gated


def _state_gradients(
    sizes: Sizes, x: torch.Tensor, passed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`_chunk_scan_bwd_dstates` in fp32, and `_state_passing_bwd`, which makes copies for the matmuls."""
    in_fp32 = torch.empty_like(passed)
    state_grad = torch.empty_like(in_fp32, dtype=x.dtype)
    copied = passed if x.dtype == passed.dtype else torch.empty_like(passed, dtype=x.dtype)
    blocks = num_chunks(sizes.head_dim * sizes.state, _STATE_BLOCK)
    chunk_decay = fp32(x, sizes.batch, sizes.heads, sizes.chunks, blocks).sum(dim=-1)
    del in_fp32
    return state_grad, copied, chunk_decay


def _partial_sums_of_d(sizes: Sizes, D: torch.Tensor) -> torch.Tensor:
    """Partial sums of D's gradient: one per block of rows, chunk and head, and per channel if D has channels."""
    rows = num_chunks(sizes.chunk, _MIN_BLOCK)
    return fp32(D, rows, sizes.batch, sizes.chunks, sizes.heads, sizes.head_dim if D.dim() == 2 else 1)


def _summed(d_sum: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
    total = d_sum.sum(dim=(0, 1, 2))
    return (total.sum(dim=-1) if D.dim() == 1 else total).to(D.dtype)


def _split_sum(sizes: Sizes, x: torch.Tensor, splits: int) -> torch.Tensor:
    """The first part of the gradient of B or C."""
    return fp32(x, sizes.batch, sizes.seqlen, splits, sizes.groups, sizes.state).sum(2)


class ChunkScan(torch.autograd.Function):
    """Keeps x, dt, B, C, D, z and the output unchanged, and the fp32 sums of the decay."""

    @staticmethod
    def forward(
        ctx: Any,
        chunk: int,
        num_sms: int,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        z: torch.Tensor | None,
        dt_bias: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.sizes, ctx.num_sms = Sizes.of(x, B, chunk), num_sms
        out, ungated, (decay, *_, final) = scan_forward(ctx.sizes, x, B, C, z)
        kept = out if ungated is None else ungated
        ctx.save_for_backward(kept, x, dt, decay, A, B, C, D, z, dt_bias, seq_idx)
        ctx.mark_non_differentiable(final)
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        _, x, dt, _, A, B, C, D, z, dt_bias, _ = ctx.saved_tensors
        found = scan_gradients(ctx.sizes, ctx.num_sms, grad_outputs[0], (x, dt, A, B, C), D, z, dt_bias, Given())
        return None, None, found.x, found.dt, found.A, found.B, found.C, found.D, found.z, found.dt_bias, None


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    *,
    num_sms: int,
) -> Any:
    """Same as `mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined`. Training passes no initial states."""
    out, final_states = ChunkScan.apply(chunk_size, num_sms, x, dt, A, B, C, D, z, dt_bias, seq_idx)
    return (out, final_states) if return_final_states else out
