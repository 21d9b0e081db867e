"""Behaviour that only older releases of the libraries have. Only `--assume` sets it, for runs that were measured with them.

The code is in `kernels/older/`, except for experts as linear layers (`models/experts/separate_experts.py`), the order of
loading (`training/loading.py`), and FSDP1's units (`parallel/fsdp/fsdp1.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Older:
    """The defaults describe current releases. Older losses are values of `loss.path`."""

    mean_keeps_input: bool = False
    """PyTorch before 2.2: backward of a mean keeps the mean's input."""
    whole_slices: bool = False
    """PyTorch 2.4: `:` in an index is an operator, whose backward copies the gradient. Only in the older losses."""
    repeats_kv: bool = False
    """Keys and values are repeated for all query heads before FlashAttention-2: Mistral's code before transformers 4.48."""
    bnb_keeps_inputs: bool = False
    """bitsandbytes until 0.43.1: the graph keeps the input of every 4-bit layer that backward passes through."""
    use_cache: bool = False
    """Keys and values of the forward are kept in its outputs. axolotl never does."""
    loading: Literal["current", "before_4_50"] = "current"
    """The order in which weights are copied to the card: as in transformers now, or before 4.50."""
    checkpoints_units: bool = False
    """transformers before 4.53: an FSDP1 unit is checkpointed as a whole, including its gathers. Now the module inside the
    unit is checkpointed."""
    experts_layout: Literal["fused", "linear"] = "fused"
    """`linear`: one linear layer for each expert and projection, as before transformers 5."""
