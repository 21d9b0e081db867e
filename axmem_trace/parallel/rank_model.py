"""`RankModel`: how a step differs if the model is one rank's part of a distributed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from axmem_trace.model_facts import ModelFacts
from axmem_trace.parallel.rank_facts import FlatShard
from axmem_trace.parallel.ranks import RankGroup


class Engine(Protocol):
    """An engine that runs backward and the optimizer itself."""

    def backward(self, loss: torch.Tensor) -> None:
        """In place of `loss.backward()`."""

    def step(self) -> torch.Tensor | None:
        """Clips, steps and drops the gradients. Returns their norm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankModel:
    """What the step needs of an engine.

    Attributes:
        call: the outermost wrapper, whose forward is the model's.
        facts: of this rank.
        reference: the forward of a second model that has a wrapper of its own; None: it is whole, or there is none.
        groups: ranks that hold parts of equal sizes, rank 0 in the first group; empty if the recorded rank is the one that
            holds the most.
        shards: FSDP1's flat ones, which hold several parameters each.
        without_sync: open during a micro-batch whose gradients are not reduced.
        with_optimizer: called with this object and the optimizer once that is made, if the engine changes it; returns the
            object to use from then on.
        save: gathers the model to save it; None: no rank gathers anything.
        engine: runs backward and the step, if the engine has functions of its own for that.
        before_repeat: called in place of the forward and backward passes of the second step, which are those of the first:
            does what the engine does once before them. None: its second step is another one.
        clip: clips the gradients (parameters, largest norm) and returns the norm; set if the engine has its own function.
    """

    call: Callable[..., Any]
    facts: ModelFacts
    without_sync: Callable[[], AbstractContextManager[Any]]
    before_repeat: Callable[[], None] | None = None
    clip: Callable[[Sequence[nn.Parameter], float], torch.Tensor] | None = None
    reference: Callable[..., Any] | None = None
    shards: tuple[FlatShard, ...] = ()
    groups: tuple[RankGroup, ...] = ()
    with_optimizer: Callable[[RankModel, Any], RankModel] | None = None
    save: Callable[[], None] | None = None
    engine: Engine | None = None
