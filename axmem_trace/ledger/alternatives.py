"""One recording of several runs that differ in some parts: each run is what is left without the parts of the others.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from axmem_trace.ledger.allocation import NEVER
from axmem_trace.ledger.columns import Allocations
from axmem_trace.ledger.ledger import Ledger
from axmem_trace.ledger.windows import Window, allocated_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NotApart(Exception):
    """A part does something for the runs that it is not of; the message says what."""


def leave_out(ledger: Ledger, windows: Sequence[Window]) -> Ledger:
    """The ledger without what happened in these windows, which do not overlap. Later ticks move up.

    Raises:
        NotApart: a mark is in them, they free something of the rest, or they make a workspace that the process keeps.
    """
    import numpy as np

    columns = ledger.columns
    kept = np.ones(len(columns), dtype=bool)
    for window in windows:
        kept[allocated_in(ledger, window)] = False
    if any(_is_in(mark.tick, windows) for mark in ledger.marks):
        raise NotApart("a phase begins")
    freed = columns.freed_tick[kept]
    if any(((freed > start) & (freed <= end)).any() for start, end in windows):
        raise NotApart("something of the rest is freed")
    if (columns.where(lambda kind: kind.role == "workspace") & ~kept & (columns.freed_tick == NEVER)).any():
        raise NotApart("a workspace is made once for all")

    def moved(ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        before = np.zeros_like(ticks)
        for start, end in windows:
            before += np.clip(ticks - start, 0, end - start)
        return np.where(ticks == NEVER, ticks, ticks - before)

    def one(tick: int) -> int:
        return int(moved(np.array([tick], dtype=np.int64))[0])

    busy = moved(np.array([kind.busy_until for kind in columns.kinds], dtype=np.int64)).tolist()
    changed = replace(
        columns,
        nbytes=columns.nbytes[kept],
        allocated_tick=moved(columns.allocated_tick[kept]),
        freed_tick=moved(freed),
        module=columns.module[kept],
        kind=columns.kind[kept],
        kinds=tuple(replace(kind, busy_until=until) for kind, until in zip(columns.kinds, busy, strict=True)),
    )
    return Ledger(
        allocations=Allocations(changed),
        marks=tuple(replace(mark, tick=one(mark.tick)) for mark in ledger.marks),
        ticks=one(ledger.ticks),
        empty_cache_ticks=tuple(one(tick) for tick in ledger.empty_cache_ticks if not _is_in(tick, windows)),
    )


def _is_in(tick: int, windows: Sequence[Window]) -> bool:
    return any(start < tick <= end for start, end in windows)
