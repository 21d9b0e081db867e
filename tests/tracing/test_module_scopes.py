"""Whose work an allocation is, reported by the module objects themselves."""

from __future__ import annotations

import torch
from torch import nn

from axmem_trace.tracing.module_scopes import ModuleScopes


class Replacing(nn.Module):
    """Replaces its part, as BigBird does its attention, and asks who is at work in the new one."""

    def __init__(self, scopes: ModuleScopes) -> None:
        super().__init__()
        self.part: nn.Module = Asking(scopes)
        self.scopes = scopes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = id(self.part)
        for _ in range(100):  # until the new one lies where the old one was: at once
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


def test_a_module_that_came_later_is_not_taken_for_one_that_went():
    scopes = ModuleScopes(lambda output: None)
    root = nn.ModuleDict({"kept": Asking(scopes), "replacing": Replacing(scopes)})
    with scopes.watch(root):
        root["kept"](torch.ones(1))
        assert Asking.found == "kept"
        root["replacing"](torch.ones(1))
        assert Asking.found == "replacing"
