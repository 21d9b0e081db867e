"""`Spread`: how a step differs if the model is one rank's part of a distributed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axmem_trace.model_facts import ModelFacts
from axmem_trace.parallel.residents import FlatShard


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """What the step needs of an engine.

    Attributes:
        call: the outermost wrapper, whose forward is the model's.
        facts: of this rank.
        shards: FSDP1's flat ones, which hold several parameters each.
        without_sync: open during a micro-batch whose gradients are not reduced.
        clip: clips the gradients (parameters, largest norm) and returns the norm; set if the engine has its own function.
    """

    call: Callable[..., Any]
    facts: ModelFacts
    without_sync: Callable[[], AbstractContextManager[Any]]
    clip: Callable[[Sequence[nn.Parameter], float], torch.Tensor] | None = None
    shards: tuple[FlatShard, ...] = ()
