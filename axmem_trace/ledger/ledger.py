"""The facts of a run (when each storage is allocated and freed), and the queries on them. No torch here.

The recorder writes `Allocation`s, which contain no interpretation. Buckets, timelines and peaks are pure functions of a
frozen `Ledger`. So they can be tested with five allocations that are written by hand.

Time is counted in *ticks*: each allocation and each free is one tick, in the order in which they happened. There are no
seconds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from axmem_trace.ledger.allocation import (
    BEFORE_ALL,
    BUCKETS,
    NEVER,
    Allocation,
    Bucket,
    Mark,
    Phase,
    block_bytes,
)
from axmem_trace.ledger.columns import Allocations, Columns, make_columns
from axmem_trace.ledger.intervals import Interval, measure_heights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Block bytes allocated (`delta` > 0) or freed (`delta` < 0)."""

    tick: int
    delta: int
    allocation: Allocation
    index: int
    """Position of the allocation in the ledger: its identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The memory alive at a tick."""

    tick: int
    allocated_bytes: int
    phase: Phase
    step: int
    module: str = ""
    op: str = ""


class Moves(NamedTuple):
    """Allocations and frees on the GPU, in order of time. Those of the same tick are in the order of the ledger.

    Attributes:
        ticks: int64.
        indices: positions of the allocations, int64.
        frees: for each, whether it is a free, bool.
    """

    ticks: NDArray[np.int64]
    indices: NDArray[np.int64]
    frees: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Every allocation of a recording, in order of allocation, and the marks of its phases."""

    allocations: Sequence[Allocation]
    marks: tuple[Mark, ...]
    ticks: int
    empty_cache_ticks: tuple[int, ...] = field(default=())
    """Ticks at which the run calls `torch.cuda.empty_cache()`."""

    @cached_property
    def columns(self) -> Columns:
        """The allocations as arrays."""
        return self.allocations.columns if isinstance(self.allocations, Allocations) else make_columns(self.allocations)

    def with_sizes(self, nbytes: NDArray[np.int64]) -> Ledger:
        """The same events with other sizes of the allocations.

        Args:
            nbytes: of each allocation.
        """
        changed = replace(self, allocations=Allocations(replace(self.columns, nbytes=nbytes)))
        for name in ("moved", "intervals", "_marks"):  # these do not depend on sizes
            changed.__dict__[name] = getattr(self, name)
        return changed

    @cached_property
    def on_gpu(self) -> tuple[Allocation, ...]:
        """The allocations of the caching allocator."""
        return tuple(allocation for allocation in self.allocations if allocation.device == "gpu")

    @cached_property
    def moved(self) -> Moves:
        """Every allocation and free on the GPU, as arrays."""
        import numpy as np

        columns = self.columns
        on_gpu = columns.where(lambda kind: kind.device == "gpu")
        allocated, freed = np.flatnonzero(on_gpu), np.flatnonzero(on_gpu & (columns.freed_tick != NEVER))
        # one number for each, so that sorting is fast: tick, then position, then 1 for a free
        width = max(1, 2 * len(columns))
        codes = [
            columns.allocated_tick[allocated] * width + 2 * allocated,
            columns.freed_tick[freed] * width + 2 * freed + 1,
        ]
        ticks, rest = np.divmod(np.sort(np.concatenate(codes)), width)
        return Moves(ticks, rest >> 1, (rest & 1).astype(bool))

    def moves(self) -> Iterator[tuple[int, int, int]]:
        """Allocations and frees on the GPU in order of time: (tick, position of the allocation, 1 if it is freed).

        The same as `events`, without making an object for each.
        """
        ticks, indices, frees = self.moved
        return zip(ticks.tolist(), indices.tolist(), frees.astype(int).tolist(), strict=True)

    def events(self) -> Iterator[Event]:
        """Allocations and frees on the GPU in order of time."""
        allocations = self.allocations
        for tick, index, frees in self.moves():
            allocation = allocations[index]
            size = block_bytes(allocation.nbytes)
            yield Event(tick=tick, delta=-size if frees else size, allocation=allocation, index=index)

    def mark_at(self, tick: int) -> Mark:
        """The phase at `tick`."""
        position = bisect_right(self._marks, tick, key=lambda mark: mark.tick)
        return self._marks[position - 1] if position else BEFORE_ALL

    @cached_property
    def _marks(self) -> list[Mark]:
        return sorted(self.marks, key=lambda mark: mark.tick)

    @cached_property
    def live_bytes(self) -> NDArray[np.int64]:
        """Live bytes on the GPU after each of `moves`."""
        import numpy as np

        _, indices, frees = self.moved
        sizes = self.columns.block_bytes[indices]
        return np.cumsum(np.where(frees, -sizes, sizes), dtype=np.int64)

    @cached_property
    def levels(self) -> tuple[array[int], array[int]]:
        """Ticks of the allocations and frees on the GPU, and the live bytes after each: the points of a chart."""
        return array("q", self.moved.ticks.tobytes()), array("q", self.live_bytes.tobytes())

    @cached_property
    def intervals(self) -> tuple[Interval, ...]:
        """The intervals from each mark to the next, in order of time. An event at a mark's tick is part of the mark's
        interval. Positions are those in `moves`.
        """
        ticks, marks = self.moved.ticks, self._marks
        if not marks or marks[0].tick > 0:
            marks = [BEFORE_ALL, *marks]
        starts = [0, *ticks.searchsorted([mark.tick for mark in marks[1:]]).tolist()]
        return tuple(map(Interval, marks, starts, [*starts[1:], len(ticks)]))

    @cached_property
    def timeline(self) -> tuple[Moment, ...]:
        """Live GPU bytes after each allocation or free, as objects. `levels` is faster and has the bytes only."""
        moments, position, mark, marks = [], 0, BEFORE_ALL, self._marks
        for (tick, index, _), live in zip(self.moves(), self.levels[1], strict=True):
            while position < len(marks) and marks[position].tick <= tick:
                mark, position = marks[position], position + 1
            allocation = self.allocations[index]
            moments.append(
                Moment(
                    tick=tick,
                    allocated_bytes=live,
                    phase=mark.phase,
                    step=mark.step,
                    module=allocation.module,
                    op=allocation.op,
                )
            )
        return tuple(moments)

    def peak(self, *, phase: Phase | None = None, step: int | None = None) -> Moment:
        """The moment with the most live bytes, in the whole recording or in one phase or step. Of equal moments, the
        first.

        The level at the beginning of a phase counts too (at the tick before its mark, in no module), as after
        `torch.cuda.reset_peak_memory_stats`. If that level equals the level after an event, the event's moment is
        returned.
        """
        moments = [m for m in self._peaks if phase in (None, m.phase) and step in (None, m.step)]
        if not moments:
            return Moment(tick=0, allocated_bytes=0, phase=phase or "load", step=step or 0)
        return max(moments, key=lambda moment: moment.allocated_bytes)

    @cached_property
    def _peaks(self) -> tuple[Moment, ...]:
        """The highest moment of each interval between two marks, in order of time. At the end of the list are those
        that are the level at the beginning."""
        found, inherited = [], []
        for interval, begin, high, position in measure_heights(self.intervals, self.live_bytes):
            mark = interval.mark
            if interval.start and mark.tick:
                inherited.append(Moment(tick=mark.tick - 1, allocated_bytes=begin, phase=mark.phase, step=mark.step))
            if position >= 0:
                reached = self.allocations[int(self.moved.indices[position])]
                found.append(
                    Moment(
                        tick=int(self.moved.ticks[position]),
                        allocated_bytes=high,
                        phase=mark.phase,
                        step=mark.step,
                        module=reached.module,
                        op=reached.op,
                    )
                )
        return (*found, *inherited)

    def alive_at(self, tick: int) -> tuple[Allocation, ...]:
        """The allocations that are alive on the GPU at a tick."""
        columns = self.columns
        alive = columns.alive(tick) & columns.where(lambda kind: kind.device == "gpu")
        return tuple(self.allocations[index] for index in alive.nonzero()[0].tolist())

    def allocated_at(self, tick: int) -> int:
        """Block bytes alive on the GPU at a tick."""
        position = int(self.moved.ticks.searchsorted(tick, side="right"))
        return int(self.live_bytes[position - 1]) if position else 0

    def by(self, key: Callable[[Allocation], K], *, tick: int) -> dict[K, int]:
        """Block bytes alive at `tick`, summed by a key of your choice: `by(lambda a: a.bucket, tick=peak.tick)`."""
        return sum_by((key(allocation), allocation.block_bytes) for allocation in self.alive_at(tick))

    def by_bucket(self, tick: int) -> dict[Bucket, int]:
        """Block bytes alive at `tick` in each bucket. All buckets are present, and their sum is
        `allocated_at(tick)`."""
        found = self.by(lambda allocation: allocation.bucket, tick=tick)
        return {bucket: found.get(bucket, 0) for bucket in BUCKETS}


def sum_by(pairs: Iterable[tuple[K, int]]) -> dict[K, int]:
    """Sums the second members of the pairs by the first members."""
    totals: dict[K, int] = {}
    for key, nbytes in pairs:
        totals[key] = totals.get(key, 0) + nbytes
    return totals


def same_events(one: Ledger, other: Ledger) -> bool:
    """Whether two ledgers differ at most in sizes."""
    import numpy as np

    mine, theirs = one.columns, other.columns
    return (
        (one.marks, one.ticks, one.empty_cache_ticks) == (other.marks, other.ticks, other.empty_cache_ticks)
        and (mine.modules, mine.kinds) == (theirs.modules, theirs.kinds)
        and all(
            np.array_equal(getattr(mine, name), getattr(theirs, name))
            for name in ("allocated_tick", "freed_tick", "module", "kind")
        )
    )
