"""The ledgers of a run with any number of rows in a micro-batch, from three recordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from axmem_trace.ledger import Ledger
from axmem_trace.ledger.scaled import NotOnALine, ScaledLedger

Record = Callable[[int], Sequence[Ledger]]
"""Returns the ledgers of the recorded ranks for a number of rows; each number is recorded once."""
FEWEST_ON_LINE = 2
"""The smallest number of rows on the line. With several rows there are tensors that do not exist with one row (labels
are copied), so one row is always recorded."""
FAR = 4
"""The third recording has this many times the rows of the first. This is far enough to find sizes that grow in
steps."""


class ScaledRun:
    """A run with any number of rows.

    Args:
        record: makes a recording.
        rows: the number of rows in the configuration.
    """

    def __init__(self, record: Record, rows: int) -> None:
        self._record = record
        self._recorded: dict[int, Sequence[Ledger]] = {}
        self._lines: tuple[ScaledLedger, ...] | None = None
        self._on_line = max(rows, FEWEST_ON_LINE)
        self.scales = True
        """False: each number of rows is recorded."""

    def record(self, rows: int) -> Sequence[Ledger]:
        """Recorded ledgers, one for each recorded rank."""
        if rows not in self._recorded:
            self._recorded[rows] = self._record(rows)
        return self._recorded[rows]

    def ledgers(self, rows: int) -> Sequence[Ledger]:
        """Ledgers, recorded or scaled, one for each recorded rank.

        Raises:
            NotOnALine: sizes are not linear in the number of rows.
        """
        if rows < FEWEST_ON_LINE or rows in self._recorded or not self.scales:
            return self.record(rows)
        return [line.at(rows) for line in self._find_lines()]

    def live_bytes(self, rows: int) -> int:
        """The most bytes that are allocated at one time, on the rank that allocates the most. Raises the same errors as
        `ledgers`."""
        if rows < FEWEST_ON_LINE or rows in self._recorded or not self.scales:
            return max(ledger.peak().allocated_bytes for ledger in self.record(rows))
        return max(line.peak_bytes(rows) for line in self._find_lines())

    def _find_lines(self) -> tuple[ScaledLedger, ...]:
        if self._lines is None:
            rows = (self._on_line, self._on_line + 1, FAR * self._on_line)
            recorded = {each: self.record(each) for each in rows}
            if len({len(ledgers) for ledgers in recorded.values()}) > 1:
                raise NotOnALine("other ranks hold the most with other numbers of rows")
            ranks = range(len(recorded[self._on_line]))
            self._lines = tuple(
                ScaledLedger({each: ledgers[rank] for each, ledgers in recorded.items()}) for rank in ranks
            )
        return self._lines
