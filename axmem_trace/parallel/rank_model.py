"""`RankModel`: how a step differs if the model is one rank's part of a distributed model."""

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
        """Called instead of `loss.backward()`."""

    def step(self) -> torch.Tensor | None:
        """Clips the gradients, updates the weights and drops the gradients. Returns the norm of the gradients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankModel:
    """What a training step needs to know about an engine.

    Attributes:
        call: the outermost wrapper; its forward runs the model's forward.
        facts: those of this rank.
        reference: the forward of a second model with a separate wrapper; None: that model is not sharded, or there is
            none.
        groups: groups of ranks whose shards have equal sizes; rank 0 is in the first. Empty if the recorded rank is the
            one that needs the most memory.
        shards: FSDP1's flat shards; each contains several parameters.
        without_sync: a context that is open during a micro-batch whose gradients are not reduced.
        with_optimizer: called with this object and the optimizer as soon as the optimizer is made, if the engine
            changes it. Returns the object to use from then on.
        save: gathers the model to save it; None: no rank gathers anything.
        engine: runs backward and the optimizer, if the engine has its own functions for them.
        before_repeat: called before the passes of the first step are repeated as those of the second step. It runs what
            the engine does once before the second step. None: the second step differs from the first.
        clip: clips the gradients (parameters, largest norm) and returns the norm; set if the engine has its own function.
        other_ranks: ranks that differ from this one in nothing but the optimizer's step.
        as_rank: called with one of them after backward; while what it returns is open, parameters and gradients are those
            that its optimizer has.
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
    other_ranks: tuple[int, ...] = ()
    as_rank: Callable[[int], AbstractContextManager[None]] | None = None
