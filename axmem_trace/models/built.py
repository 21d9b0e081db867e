"""`BuiltModel`: the result of `build_model`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from axmem_trace.model_facts import ModelFacts
from axmem_trace.notes import Notes


def unwrapped(model: Any) -> Any:
    """The transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor that a module keeps outside its parameters and buffers, such as bitsandbytes' `absmax`.

    `name` is the tensor's own dotted name, `module` the dotted name of the module that owns it. A recorder registers the
    storage of `tensor` as weights.
    """

    name: str
    module: str
    tensor: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltModel:
    """The model as axolotl would pass it to the trainer: loaded, quantised, cast, with adapter, frozen, in training mode.

    `module` is a `PeftModel` if there is an adapter. `state_tensors` lists tensors outside `parameters()` and `buffers()`.
    `facts` counts all three kinds, each storage once.
    """

    module: nn.Module
    config: Any
    facts: ModelFacts
    whole_facts: ModelFacts
    """`facts`, plus those of the repeated layers that were removed from `module`."""
    state_tensors: tuple[StateTensor, ...] = ()
    notes: Notes = field(default_factory=Notes)
    reference: nn.Module | None = None
    """A second, frozen model: the reference."""
    reward_models: tuple[nn.Module, ...] = ()
    """Frozen classifiers that score generated completions."""
    feature_network: nn.Module | None = None
    """A frozen copy of the policy, whose hidden states reward completions (EBFT)."""
    reference_forward: Callable[..., Any] | None = None
    """How to call the reference, if it has its own wrapper: without autocast, and its outputs are not cast. None: it is
    called like a model that accelerate has prepared."""
