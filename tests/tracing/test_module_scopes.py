"""Which module makes an allocation. The module objects themselves report it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from axmem_trace.tracing.module_scopes import ModuleScopes


class Replacing(nn.Module):
    """Replaces its submodule, as BigBird replaces its attention, and reads which module runs in the new one."""

    def __init__(self, scopes: ModuleScopes) -> None:
        super().__init__()
        self.part: nn.Module = Asking(scopes)
        self.scopes = scopes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = id(self.part)
        for _ in range(100):  # until the new module has the address of the old one, which happens immediately
            del self.part
            self.part = Asking(self.scopes)
            if id(self.part) == before:
                break
        return self.part(x)


class Asking(nn.Module):
    found = ""

    def __init__(self, scopes: ModuleScopes) -> None:
        super().__init__()
        self.scopes = scopes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Asking.found = self.scopes.current()
        return x


def test_a_new_module_is_not_mistaken_for_a_deleted_one():
    scopes = ModuleScopes(lambda output: None)
    root = nn.ModuleDict({"kept": Asking(scopes), "replacing": Replacing(scopes)})
    with scopes.watch(root):
        root["kept"](torch.ones(1))
        assert Asking.found == "kept"
        root["replacing"](torch.ones(1))
        assert Asking.found == "replacing"


class Layer(nn.Module):
    """Checkpoints its forward, as `GradientCheckpointingLayer` of transformers 5.24 does. So its hooks run only
    once."""

    def __init__(self, scopes: ModuleScopes, **options: bool) -> None:
        super().__init__()
        self.first, self.scopes, self.at_work = nn.Linear(2, 2), scopes, []
        self._gradient_checkpointing_func = partial(checkpoint, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._gradient_checkpointing_func(self.compute, x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).exp()
        self.at_work.append(self.scopes.current())
        return x.sin()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_layer_is_the_current_module_during_recomputation(use_reentrant):
    scopes = ModuleScopes(lambda output: None)
    root = nn.ModuleDict({"layer": Layer(scopes, use_reentrant=use_reentrant), "head": nn.Linear(2, 1)})
    original = root["layer"]._gradient_checkpointing_func
    with scopes.watch(root):
        loss = root["head"](root["layer"](torch.ones(1, 2, requires_grad=True))).sum()
        loss.backward()
        assert not scopes.inside
    assert root["layer"].at_work == ["layer", "layer"]
    assert root["layer"]._gradient_checkpointing_func is original
