"""Rows that are scattered over experts: the inputs and allocations of ScatterMoE's kernels.

Source: axolotl 0.19, `integrations/kernels/libs/scattermoe_lora/kernels/ops.py` (`scatter2scatter`, `group`). The
Triton kernels allocate only their outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Routed(NamedTuple):
    """The routed rows, sorted by expert: the expert of each row, its position in the order of tokens, and the end of each
    expert's rows."""

    experts: torch.Tensor
    places: torch.Tensor
    offsets: torch.Tensor


def scatter(x: torch.Tensor, weight: torch.Tensor, routed: Routed) -> torch.Tensor:
    """`scatter2scatter` without `out`: a row [out] for each routed row; weight is [experts, in, out]."""
    return torch.empty((routed.experts.size(0), weight.size(-1)), device=x.device, dtype=x.dtype)


def in_dtype_of(x: torch.Tensor, tensor: torch.Tensor | None) -> Any:
    """The tensor, or a copy of it in x's dtype if its dtype differs."""
    return tensor if tensor is None or tensor.dtype == x.dtype else tensor.to(x.dtype)


def summed_by_token(output: torch.Tensor, gates: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """With gates [tokens, top_k]: the weighted sum of the rows, and all rows before the sum. Else the output, unchanged."""
    if gates is None:
        return output, None
    expanded = output.view(gates.size(0), gates.size(1), output.size(-1))
    return (gates.unsqueeze(1) @ expanded).squeeze(1), expanded


def unsummed(grad: torch.Tensor, expanded: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Backward of `summed_by_token`: gradients of the rows, sorted by expert, and of the gates."""
    if expanded is None:
        return grad, None
    grad = in_dtype_of(expanded, grad)
    d_gates = (expanded @ grad.unsqueeze(-1)).squeeze(-1)
    return expanded.flatten(0, 1), d_gates  # `group` writes the sorted rows into the memory that forward kept


def gather_rows(x: torch.Tensor, routed: Routed) -> torch.Tensor:
    """`group` without `out`: the rows, sorted by expert."""
    return torch.empty((routed.places.size(0), x.size(1)), device=x.device, dtype=x.dtype)
