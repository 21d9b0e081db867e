"""Ledgers for numbers of rows between and above the recorded ones."""

from __future__ import annotations

import pytest

from axmem_trace.ledger import Allocation, Ledger, Mark
from axmem_trace.ledger.scaled import NotOnALine, ScaledLedger


def ledger(*sizes: int, freed: int = 4) -> Ledger:
    allocations = tuple(
        Allocation(nbytes=nbytes, allocated_tick=tick, freed_tick=freed, phase="forward", step=1, module="m", op="x")
        for tick, nbytes in enumerate(sizes, start=2)
    )
    return Ledger(allocations=allocations, marks=(Mark(tick=1, phase="forward", step=1),), ticks=9)


def test_sizes_are_on_the_line() -> None:
    """100 bytes + 20 bytes for each row; and 7 bytes."""
    scaled = ScaledLedger({rows: ledger(100 + 20 * rows, 7) for rows in (2, 3, 8)})
    assert [each.nbytes for each in scaled.at(50).allocations] == [1100, 7]
    assert [each.nbytes for each in scaled.at(1).allocations] == [120, 7]
    assert scaled.at(50) is scaled.at(50)
    assert scaled.peak_bytes(50) == scaled.at(50).peak().allocated_bytes == 1536 + 512


@pytest.mark.parametrize(
    ("third", "why"),
    [
        (ledger(260, 8), "grows in steps"),
        (ledger(262, 7), "grows in steps"),
        (ledger(260, 7, freed=5), "another order"),
        (ledger(260, 7, 1), "another order"),
    ],
)
def test_sizes_that_are_not_on_a_line_are_refused(third: Ledger, why: str) -> None:
    with pytest.raises(NotOnALine, match=why):
        ScaledLedger({2: ledger(140, 7), 3: ledger(160, 7), 8: third})


def test_no_size_is_negative() -> None:
    scaled = ScaledLedger({rows: ledger(10 * rows - 20) for rows in (3, 4, 5)})
    with pytest.raises(NotOnALine, match="negative"):
        scaled.at(1)
