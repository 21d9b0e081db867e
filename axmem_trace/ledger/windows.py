"""Parts of a ledger that were recorded again with other sizes. No torch here.

If both recordings have the same events, every allocation has the same position in both, so its size is known in both.
Events that are repeated later in a ledger (another micro-batch, another step) have the same sizes as the first time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from axmem_trace.ledger.allocation import NEVER, Mark, Phase
from axmem_trace.ledger.ledger import Ledger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Positions = NDArray[np.intp]

INDEPENDENT: tuple[Phase, ...] = ("load", "optimizer")
"""Phases whose sizes do not depend on the batches."""


class Window(NamedTuple):
    """The ticks after `start` up to `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BatchWindows:
    """The parts of a recording whose sizes depend on the batches.

    Attributes:
        placing: the window in which the batches of the first step are made and copied to the GPU.
        passes: forward and backward of the first micro-batch of that step; it begins where `placing` ends.
        evaluations: the evaluation loops.
    """

    placing: Window
    passes: Window
    evaluations: tuple[Window, ...] = ()

    def __iter__(self) -> Iterator[Window]:
        return iter((self.placing, self.passes, *self.evaluations))


class CannotReuse(Exception):
    """The sizes of a recording can't be found from parts of it; the message says why."""


def allocated_in(ledger: Ledger, window: Window) -> Positions:
    """Positions of the allocations of a window."""
    import numpy as np

    found: Positions = np.arange(*ledger.columns.allocated_tick.searchsorted([window.start + 1, window.end + 1]))
    return found


def have_same_events(one: Ledger, first: Window, other: Ledger, second: Window) -> bool:
    """Whether two windows differ only in sizes: they have the same allocations, frees, marks and `empty_cache` calls,
    in the same order, by the same operators in the same modules."""
    import numpy as np

    mine, theirs = _events_of(one, first), _events_of(other, second)
    if mine[0] != theirs[0] or not all(np.array_equal(*pair) for pair in zip(mine[1], theirs[1], strict=True)):
        return False
    a, b = one.columns, other.columns
    positions, others = allocated_in(one, first), allocated_in(other, second)
    names = zip(a.module[positions].tolist(), b.module[others].tolist(), strict=True)
    kinds = zip(a.kind[positions].tolist(), b.kind[others].tolist(), strict=True)
    return all(a.modules[mine] == b.modules[theirs] for mine, theirs in set(names)) and all(
        a.kinds[mine] == b.kinds[theirs] for mine, theirs in set(kinds)
    )


def _events_of(ledger: Ledger, window: Window) -> tuple[object, tuple[NDArray[np.int64], ...]]:
    """The window's events, with ticks counted from its start. First the marks and `empty_cache` calls; then the ticks
    at which its allocations are allocated and freed, and at which earlier ones are freed. An allocation that is freed
    after the window counts as never freed."""
    import numpy as np

    start, end = window
    allocated, freed = ledger.columns.allocated_tick, ledger.columns.freed_tick
    inside = allocated_in(ledger, window)
    ends = np.where(freed[inside] <= end, freed[inside] - start, NEVER)
    earlier = freed[(allocated <= start) & (start < freed) & (freed <= end)]
    marks = [(mark.tick - start, mark.phase, mark.micro_batch) for mark in ledger.marks if start < mark.tick <= end]
    emptied = [tick - start for tick in ledger.empty_cache_ticks if start < tick <= end]
    return (end - start, marks, emptied), (allocated[inside] - start, ends, np.sort(earlier - start))


def find_sources(ledger: Ledger, windows: BatchWindows) -> Positions:
    """For each allocation, the position of its source: the allocation that has the same size with any batch. In a
    window, an allocation is its own source. In another micro-batch or step, the source is the same allocation of the
    first one. -1: the size does not depend on the batch.

    Raises:
        CannotReuse: another micro-batch has other events than the first.
    """
    import numpy as np

    columns = ledger.columns
    sources: Positions = np.full(len(columns), -1, dtype=np.intp)
    known = columns.where(lambda kind: kind.phase in INDEPENDENT)
    for window in windows:
        inside = allocated_in(ledger, window)
        sources[inside] = inside
        known[inside] = True
    for mark, window in _later_batches(ledger, windows):
        again = allocated_in(ledger, window)
        firsts = [allocated_in(ledger, windows.passes)]
        if not mark.micro_batch:
            firsts.insert(0, allocated_in(ledger, windows.placing))
        sources[again] = _pair(ledger, again.tolist(), np.concatenate(firsts).tolist())
        known[again] = True
    if not known.all():
        raise CannotReuse(f"{ledger.allocations[int(np.argmin(known))]} is in no pass")
    return sources


def _later_batches(ledger: Ledger, windows: BatchWindows) -> Iterator[tuple[Mark, Window]]:
    """Each later micro-batch of any step: the mark of its forward, and its window up to the next micro-batch or
    optimizer."""
    marks = sorted((mark for mark in ledger.marks if mark.tick > windows.passes.start), key=lambda mark: mark.tick)
    seen: set[tuple[int, int]] = {(1, 0)}
    for number, mark in enumerate(marks):
        batch = (mark.step, mark.micro_batch)
        if mark.phase != "forward" or batch in seen:
            continue
        seen.add(batch)
        behind = (each.tick - 1 for each in marks[number + 1 :] if _ends_batch(each, batch))
        yield mark, Window(mark.tick - 1, next(behind, ledger.ticks))


def _ends_batch(mark: Mark, batch: tuple[int, int]) -> bool:
    return mark.phase in ("optimizer", "eval") or (mark.step, mark.micro_batch) != batch


def _pair(ledger: Ledger, again: Sequence[int], first: Sequence[int]) -> list[int]:
    """For each allocation of a later micro-batch, the same allocation of the first micro-batch.

    Both have the same order. Only the first micro-batch may allocate gradients (later gradients are added to them) and
    blocks that are never freed (cuBLAS's workspace, a cache).
    """
    columns = ledger.columns
    kinds, codes, modules = columns.kinds, columns.kind.tolist(), columns.module.tolist()
    nbytes, freed = columns.nbytes.tolist(), columns.freed_tick.tolist()
    facts = [(kind.op, kind.phase, kind.recomputed, kind.device, kind.stream, kind.kept, kind.output) for kind in kinds]
    is_gradient = [kind.role == "gradient" for kind in kinds]

    def are_same(later: int, earlier: int) -> bool:
        """Whether they are the same allocation. A gradient always has the parameter's module, whichever module
        allocated it."""
        same = nbytes[later] == nbytes[earlier] and facts[codes[later]] == facts[codes[earlier]]
        return same and (modules[later] == modules[earlier] or is_gradient[codes[earlier]])

    def is_once(position: int) -> bool:
        return is_gradient[codes[position]] or freed[position] == NEVER

    found: list[int] = []
    rest = iter(first)
    for position in again:
        for each in rest:
            if are_same(position, each):
                found.append(each)
                break
            if not is_once(each):
                raise CannotReuse(f"{ledger.allocations[each]} is not repeated")
        else:
            raise CannotReuse(f"{ledger.allocations[position]} is new in a later micro-batch")
    if not all(map(is_once, rest)):
        raise CannotReuse("a later micro-batch allocates less than the first")
    return found
