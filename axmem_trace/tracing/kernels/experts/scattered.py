"""Rows scattered over experts: what ScatterMoE's kernels take and make.

Source: axolotl 0.19, `integrations/kernels/libs/scattermoe_lora/kernels/ops.py` (`scatter2scatter`, `group`). The
Triton kernels take no memory beside their outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Routed(NamedTuple):
    """Of each routed row in order of experts: its expert and its place by token; and the end of each expert's rows."""

    experts: torch.Tensor
    places: torch.Tensor
    offsets: torch.Tensor


def scatter(x: torch.Tensor, weight: torch.Tensor, routed: Routed) -> torch.Tensor:
    """`scatter2scatter` without `out`: a row [out] of weight [experts, in, out] for each routed row."""
    return torch.empty((routed.experts.size(0), weight.size(-1)), device=x.device, dtype=x.dtype)


def gather_rows(x: torch.Tensor, routed: Routed) -> torch.Tensor:
    """`group` without `out`: rows by expert."""
    return torch.empty((routed.places.size(0), x.size(1)), device=x.device, dtype=x.dtype)
