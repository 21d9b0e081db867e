"""The optimizer's steps of ranks that differ from the recorded rank only in these steps.

The step of each such rank is recorded directly after the step of the recorded rank, with its own optimizer. `split`
then makes a ledger for each rank. With gradient accumulation FSDP1's backward differs too, in blocks that are freed
immediately after they are allocated: for a unit's parameters instead of one parameter (`_use_sharded_grad_views`). The
blocks of the recorded rank are used for all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from axmem_trace.ledger import Ledger
from axmem_trace.ledger.alternatives import NotApart, leave_out
from axmem_trace.ledger.windows import Window
from axmem_trace.parallel.rank_model import RankModel
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.training.optimizers import build_optimizer
from axmem_trace.training.optimizers.traced import TracedOptimizer


class KeepsNorm(Protocol):
    """An object that keeps the norm of the gradients until the norm of the next step is known."""

    grad_norm: Any


@dataclass
class _OtherRank:
    """The optimizer and the records that another rank does not share with the recorded rank."""

    optimizer: TracedOptimizer
    windows: list[Window] = field(default_factory=list)
    grad_norm: Any = None


class OtherSteps:
    """The steps of other ranks; see `RankModel.other_ranks`."""

    def __init__(self, recipe: Recipe, module: nn.Module, rank_model: RankModel, recorder: Recorder) -> None:
        self._recipe, self._module, self._recorder = recipe, module, recorder
        self._rank_model = rank_model
        self._own: list[Window] = []
        self._others: dict[int, _OtherRank] = {}

    def record(self, start: int, step: Callable[[TracedOptimizer, KeepsNorm], None]) -> None:
        """Records the step of every other rank.

        Args:
            start: the tick before the recorded rank's own step, which has just been done; its gradients still exist.
            step: clips and steps with an optimizer.
        """
        recorder = self._recorder
        self._own.append(Window(start, recorder.now))
        for rank in self._rank_model.other_ranks:
            assert self._rank_model.as_rank is not None, "a rank model with other ranks says how they are made"
            with self._rank_model.as_rank(rank):
                if rank not in self._others:
                    with recorder.paused():
                        self._others[rank] = _OtherRank(build_optimizer(self._recipe, self._module))
                other, begin = self._others[rank], recorder.now
                step(other.optimizer, other)
                other.windows.append(Window(begin, recorder.now))

    def split(self, ledger: Ledger) -> tuple[Ledger, dict[int, Ledger]]:
        """The recorded rank's ledger, and those of the other ranks; none, if their steps can't be taken apart."""
        by_rank = {rank: other.windows for rank, other in self._others.items()}
        own = leave_out(ledger, _all_but(None, by_rank, ()))
        try:
            return own, {rank: leave_out(ledger, _all_but(rank, by_rank, self._own)) for rank in by_rank}
        except NotApart:
            return own, {}


def _all_but(rank: int | None, by_rank: Mapping[int, Sequence[Window]], own: Sequence[Window]) -> list[Window]:
    return [*own, *(window for each, windows in by_rank.items() if each != rank for window in windows)]
