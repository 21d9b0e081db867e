"""A recording of two steps, continued for many steps whose rows have other lengths. No torch here.

All later steps are like the second step. Some tensors stay alive from one step to the next (the last batch, the last
loss). Each later step frees them at the same event at which the second step frees those of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.ledger.columns import Allocations, Columns
from axmem_trace.lengths.laws import DifferentEvents, SizeLaws
from axmem_trace.recipe.recipe import Allocator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tokens = Sequence[Sequence[int]]
"""For each step, the tokens of a row in each of its micro-batches."""


def count_micro_batches(ledger: Ledger) -> int:
    """How many micro-batches of a step were recorded."""
    return 1 + max((mark.micro_batch for mark in ledger.marks if mark.step == 1), default=0)


def make_steps(ledger: Ledger, laws: SizeLaws, tokens: Tokens, allocator: Allocator) -> Ledger:
    """The ledger of a run of many steps. The events before and after the steps (loading, evaluation) are as recorded.

    Args:
        laws: the laws of the ledger's sizes.
        tokens: for at least two steps; each with as many micro-batches as were recorded (`count_micro_batches`).
        allocator: its settings say after which steps the cache is emptied.

    Raises:
        DifferentEvents: the second step can't be continued.
    """
    return _Continued(ledger, laws, tokens, allocator).make()


@dataclass(frozen=True)
class _Rows:
    """Some of the recorded allocations, with ticks, sizes and kinds in the run of many steps."""

    indices: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    kinds: NDArray[np.int64]


class _Continued:
    def __init__(self, ledger: Ledger, laws: SizeLaws, tokens: Tokens, allocator: Allocator) -> None:
        import numpy as np

        self.ledger, self.laws, self.allocator, self.columns = ledger, laws, allocator, ledger.columns
        self.tokens = np.array(tokens, dtype=np.int64)
        """[steps, micro-batches]."""
        marks = sorted(ledger.marks, key=lambda mark: mark.tick)
        self.first = _first_tick(marks, 1)
        self.second = _first_tick(marks, 2)
        self.end = next((mark.tick for mark in marks if mark.tick > self.second and mark.step != 2), ledger.ticks)
        self.length = self.end - self.second
        self.num_copies = len(tokens) - 1
        self.added = (self.num_copies - 1) * self.length
        """The number of ticks of all steps that were not recorded."""

    def make(self) -> Ledger:
        rows = [self._before(), *map(self._step, range(self.num_copies)), self._after()]
        return Ledger(
            allocations=Allocations(self._join(rows)),
            marks=tuple(sorted(self._marks(), key=lambda mark: mark.tick)),
            ticks=self.ledger.ticks + self.added,
            empty_cache_ticks=tuple(sorted({*self._empty_cache_ticks()})),
        )

    # -- allocations --------------------------------------------------------------------------------------------------

    def _before(self) -> _Rows:
        """The rows of loading and of the first step."""
        indices = self._between(0, self.second)
        sizes = self.columns.nbytes[indices]
        of_step = self.columns.allocated_tick[indices] >= self.first
        sizes[of_step] = self._sizes(indices[of_step], 0)
        return _Rows(
            indices,
            self.columns.allocated_tick[indices],
            self._late_ends[indices],
            sizes,
            self.columns.kind[indices].astype("int64"),
        )

    def _step(self, copy: int) -> _Rows:
        """The rows of the second step, or of a step after it."""
        import numpy as np

        indices = self._between(self.second, self.end)
        shift = copy * self.length
        ends, kinds = self.columns.freed_tick.copy(), self.columns.kind.astype("int64")
        if copy < self.num_copies - 1:
            earlier, later = self._handed_on
            ends[later], kinds[later] = ends[earlier] + self.length, kinds[earlier]
            ends = ends + shift
        else:
            ends = np.where(ends < self.end, ends + shift, self._late_ends)
        kinds = kinds[indices] + (copy * len(self.columns.kinds) if self._waits else 0)
        return _Rows(
            indices, self.columns.allocated_tick[indices] + shift, ends[indices], self._sizes(indices, copy + 1), kinds
        )

    def _after(self) -> _Rows:
        indices = self._between(self.end, NEVER)
        starts = self.columns.allocated_tick[indices] + self.added
        kinds = self.columns.kind[indices].astype("int64")
        kinds += (self.num_copies - 1) * len(self.columns.kinds) if self._waits else 0
        return _Rows(indices, starts, self._late_ends[indices], self.columns.nbytes[indices], kinds)

    def _between(self, start: int, end: int) -> NDArray[np.int64]:
        """The positions of the allocations from the tick `start` to before the tick `end`."""
        ticks = self.columns.allocated_tick
        found: NDArray[np.int64] = ((ticks >= start) & (ticks < end)).nonzero()[0]
        return found

    def _sizes(self, indices: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Bytes of the allocations in a step; step 0 is the first."""
        sizes = self.columns.nbytes[indices]
        grows = self.laws.grows[indices]
        sizes[grows] = self.laws.at(indices[grows], self.tokens[step][self._micro_batches[indices[grows]]])
        return sizes

    @cached_property
    def _late_ends(self) -> NDArray[np.int64]:
        """The tick at which each allocation is freed, if all further steps are inserted directly after the second
        step."""
        import numpy as np

        ends = self.columns.freed_tick
        return np.where((ends >= self.end) & (ends < NEVER), ends + self.added, ends)

    @cached_property
    def _micro_batches(self) -> NDArray[np.int64]:
        """The micro-batch of each allocation. All inputs are allocated at the beginning of the step: they are divided
        among the micro-batches in order. Inputs of micro-batches that were not recorded count for the last one."""
        import numpy as np

        marks = sorted(self.ledger.marks, key=lambda mark: mark.tick)
        position = np.searchsorted([mark.tick for mark in marks], self.columns.allocated_tick, side="right") - 1
        found = np.array([0, *(mark.micro_batch for mark in marks)], dtype=np.int64)[position + 1]
        inputs = self.columns.where(lambda kind: kind.role == "input") & self.laws.grows
        for start, end in ((self.first, self.second), (self.second, self.end)):
            placed = np.flatnonzero(
                inputs & (self.columns.allocated_tick >= start) & (self.columns.allocated_tick < end)
            )
            found[placed] = np.arange(len(placed)) * self.tokens.shape[1] // max(len(placed), 1)
        return found

    @cached_property
    def _handed_on(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The allocations of the first step that the second step frees; and the same allocations of the second step."""
        start, end = self.columns.allocated_tick, self.columns.freed_tick
        first = (start >= self.first) & (start < self.second) & (end >= self.second) & (end < self.end)
        second = (start >= self.second) & (start < self.end) & (end >= self.end)
        earlier, later = first.nonzero()[0], second.nonzero()[0]
        if list(map(self._describe, earlier.tolist())) != list(map(self._describe, later.tolist())):
            raise DifferentEvents("the second step leaves other tensors behind than the first")
        return earlier, later

    def _describe(self, index: int) -> tuple[object, ...]:
        each = self.ledger.allocations[index]
        return each.op, each.module, each.role, each.device, each.stream, each.nbytes

    @cached_property
    def _waits(self) -> bool:
        """Whether blocks wait for another stream until a certain tick."""
        return any(kind.busy_until for kind in self.columns.kinds)

    def _join(self, rows: Sequence[_Rows]) -> Columns:
        import numpy as np

        indices = np.concatenate([each.indices for each in rows])
        return Columns(
            nbytes=np.concatenate([each.sizes for each in rows]),
            allocated_tick=np.concatenate([each.starts for each in rows]),
            freed_tick=np.concatenate([each.ends for each in rows]),
            module=self.columns.module[indices],
            kind=np.concatenate([each.kinds for each in rows]).astype(np.int32),
            modules=self.columns.modules,
            kinds=tuple(self._kinds()),
        )

    def _kinds(self) -> Iterator[Allocation]:
        """The recorded kinds. If blocks wait for other streams, they are repeated for each further step."""
        for copy in range(self.num_copies if self._waits else 1):
            for kind in self.columns.kinds:
                shifted = copy and 0 < kind.busy_until < NEVER
                yield replace(kind, busy_until=kind.busy_until + copy * self.length) if shifted else kind

    # -- everything else ----------------------------------------------------------------------------------------------

    def _marks(self) -> Iterator[Mark]:
        for mark in self.ledger.marks:
            if mark.tick < self.second:
                yield mark
            elif mark.tick >= self.end:
                yield replace(mark, tick=mark.tick + self.added)
            else:
                for copy in range(self.num_copies):
                    yield replace(mark, tick=mark.tick + copy * self.length, step=copy + 2)

    def _empty_cache_ticks(self) -> Iterator[int]:
        """The ticks of the recorded steps, and those of the further steps in which the cache is emptied
        (`Run._empty_cache`, `_collect`)."""
        collect, empty = self.allocator.collect_steps, self.allocator.empty_cache_steps
        yield from (tick for tick in self.ledger.empty_cache_ticks if tick < self.second)
        yield from (tick + self.added for tick in self.ledger.empty_cache_ticks if tick >= self.end)
        inside = [tick for tick in self.ledger.empty_cache_ticks if self.second <= tick < self.end]
        backward = [
            mark.tick for mark in self.ledger.marks if mark.phase == "backward" and self.second <= mark.tick < self.end
        ]
        for copy in range(self.num_copies):
            step, shift = copy + 2, copy * self.length
            if max(collect, empty) < 2:
                yield from (tick + shift for tick in inside)
                continue
            if empty > 0 and (step - 1) % empty == 0:
                yield from (tick + shift for tick in backward)
            before_evaluation = copy == self.num_copies - 1 and self.end < self.ledger.ticks
            if collect and (before_evaluation or (collect > 0 and step % collect == 0)):
                yield self.end + shift


def _first_tick(marks: Sequence[Mark], step: int) -> int:
    tick = next((mark.tick for mark in marks if mark.step == step), None)
    if tick is None:
        raise DifferentEvents(f"step {step} was not recorded")
    return tick
