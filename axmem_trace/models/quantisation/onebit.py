"""`use_onebitllms`: linear layers that compute with ternary copies of their weights and 8-bit copies of their inputs.

Source: onebitllms 0.0.4 `layers/bitnet.py` (`BitNetLinear.forward`), `utils/monkey_patching.py`,
`kernels/{activation,weight}_quant.py`; axolotl 0.19 `loaders/model.py` `_build_model`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe

_BLOCK = 256
"""Both kernels compute one partial result for this many values."""


def replace_linears(model: nn.Module, recipe: Recipe, notes: Notes) -> None:
    """Replace every linear layer that is not called `lm_head`. The new layer is created while the old one still exists."""
    if not recipe.model.use_onebitllms:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "lm_head":
            made: Any = torch.empty_like(module.weight)
            del made
            module.__class__ = BitNetLinear
    text = (
        "1.58-bit layers keep full copies of their quantised weight and input for backward: the copies are counted, as in "
        "onebitllms 0.0.4"
    )
    notes.append(Note(kind="ruled", key="use_onebitllms", text=text))


class BitNetLinear(nn.Linear):
    """A 1.58-bit layer. Both sums in its forward are new tensors, which the matmul keeps. The weight and the input stay
    alive too."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As in `BitNetLinear.forward`."""
        inputs = input + (_quantise_inputs(input) - input).detach()
        weight = self.weight + (_quantise_weight(self.weight) - self.weight).detach()
        return F.linear(inputs, weight, self.bias)


def _quantise_inputs(inputs: torch.Tensor) -> torch.Tensor:
    quantised = torch.empty_like(inputs)
    blocks = -(-inputs.shape[-1] // _BLOCK)
    _largest = torch.empty(inputs.shape[:-1].numel() * blocks, dtype=inputs.dtype, device=inputs.device)
    return quantised.detach()


def _quantise_weight(weight: torch.Tensor) -> torch.Tensor:
    sums = torch.empty(-(-weight.numel() // _BLOCK), dtype=torch.float32, device=weight.device)
    sums.sum()
    return torch.empty_like(weight).detach()
