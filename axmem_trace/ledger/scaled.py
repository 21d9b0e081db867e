"""A run's ledger for any number of rows, computed from recordings with a few numbers of rows. No torch here.

The size of each tensor of a batch is a linear function of the number of rows; everything else keeps its size. But
workspaces of kernels may grow in steps. So each recording after the second is used to check that every size is on the
line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from axmem_trace.ledger.allocation import BLOCK_BYTES
from axmem_trace.ledger.columns import Allocations
from axmem_trace.ledger.ledger import Ledger, same_events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NotOnALine(Exception):
    """The sizes are not linear functions of the number of rows; the message says why."""


class ScaledLedger:
    """Ledgers by number of rows: the recorded ones, and others on the straight line through them.

    Args:
        recorded: at least three; their events must be the same.

    Raises:
        NotOnALine: events differ, or a size is not on the line through the first and the last recording.
    """

    def __init__(self, recorded: Mapping[int, Ledger]) -> None:
        rows = sorted(recorded)
        assert len(rows) > 2, "two points are always on a line"
        self._recorded = dict(recorded)
        self._made: dict[int, Ledger] = {}
        self._first, last = rows[0], rows[-1]
        first = recorded[self._first]
        if not all(same_events(first, recorded[each]) for each in rows[1:]):
            raise NotOnALine("other numbers of rows allocate in another order")
        grown = recorded[last].columns.nbytes - first.columns.nbytes
        self._slope, rest = grown // (last - self._first), grown % (last - self._first)
        if rest.any() or any((self._nbytes(each) != recorded[each].columns.nbytes).any() for each in rows):
            raise NotOnALine("a size grows in steps")

    def at(self, rows: int) -> Ledger:
        """The ledger for this number of rows.

        Raises:
            NotOnALine: a size would be negative.
        """
        if rows in self._recorded:
            return self._recorded[rows]
        if rows not in self._made:
            nbytes, base = self._nbytes(rows), self._recorded[self._first]
            if (nbytes < 0).any():
                raise NotOnALine("a size would be negative")
            self._made[rows] = replace(base, allocations=Allocations(replace(base.columns, nbytes=nbytes)))
        return self._made[rows]

    def peak_bytes(self, rows: int) -> int:
        """The most live bytes on the GPU for this number of rows, in whole blocks:
        `at(rows).peak().allocated_bytes`."""
        import numpy as np

        moved = self._recorded[self._first].moved
        blocks = -(-self._nbytes(rows) // BLOCK_BYTES) * BLOCK_BYTES
        changes = np.where(moved.frees, -blocks[moved.indices], blocks[moved.indices])
        return max(0, int(np.cumsum(changes).max(initial=0)))

    def _nbytes(self, rows: int) -> NDArray[np.int64]:
        return self._recorded[self._first].columns.nbytes + self._slope * (rows - self._first)
