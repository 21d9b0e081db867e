"""Windows of ledgers written by hand: the same events with other sizes, and the sizes of later micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from axmem_trace.ledger import NEVER, Allocation, Ledger, Mark
from axmem_trace.ledger.windows import BatchWindows, CannotReuse, Window, allocated_in, find_sources, have_same_events


def allocation(first: int, last: int, nbytes: int, **changes: Any) -> Allocation:
    return Allocation(nbytes=nbytes, allocated_tick=first, freed_tick=last, **changes)


def ledger_of(*allocations: Allocation, marks: tuple[Mark, ...] = (), ticks: int = 40) -> Ledger:
    return Ledger(allocations=allocations, marks=marks, ticks=ticks)


WINDOW = Window(2, 8)
EVENTS = (
    allocation(1, 6, 100, op="weight"),  # allocated before the window, freed in it
    allocation(3, 5, 20, op="a", module="m"),
    allocation(4, 20, 30, op="b", module="m"),  # freed after it
)


def test_sizes_and_events_outside_may_differ() -> None:
    other = ledger_of(
        allocation(11, 16, 999, op="another"),
        allocation(13, 15, 40, op="a", module="m"),
        allocation(14, 33, 60, op="b", module="m"),
    )
    assert have_same_events(ledger_of(*EVENTS), WINDOW, other, Window(12, 18))
    assert allocated_in(other, Window(12, 18)).tolist() == [1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {1: {"freed_tick": 7}},
        {1: {"op": "c"}},
        {1: {"module": "n"}},
        {1: {"device": "cpu"}},
        {1: {"kept": True}},
        {2: {"freed_tick": 7}},
        {0: {"freed_tick": 7}},
        {0: {"freed_tick": 20}},
        {2: {"allocated_tick": 9}},
    ],
)
def test_each_other_difference_is_found(changed: dict[int, dict[str, Any]]) -> None:
    other = ledger_of(*(replace(each, **changed.get(number, {})) for number, each in enumerate(EVENTS)))
    assert not have_same_events(ledger_of(*EVENTS), WINDOW, other, WINDOW)


def test_marks_and_emptied_caches_are_events() -> None:
    plain = ledger_of(*EVENTS)
    marked = ledger_of(*EVENTS, marks=(Mark(tick=7, phase="backward", step=1),))
    emptied = replace(plain, empty_cache_ticks=(7,))
    assert not have_same_events(plain, WINDOW, marked, WINDOW)
    assert not have_same_events(plain, WINDOW, emptied, WINDOW)


MARKS = (
    Mark(tick=2, phase="forward", step=1),
    Mark(tick=6, phase="backward", step=1),
    Mark(tick=12, phase="forward", step=1, micro_batch=1),
    Mark(tick=14, phase="backward", step=1, micro_batch=1),
    Mark(tick=18, phase="optimizer", step=1),
    Mark(tick=22, phase="forward", step=2),
)
WINDOWS = BatchWindows(placing=Window(1, 3), passes=Window(3, 11))
RUN = (
    allocation(1, 39, 100, phase="load", op="weight"),
    allocation(3, 23, 8, op="input", role="input"),
    allocation(4, NEVER, 999, op="cuBLAS"),  # once in the process
    allocation(5, 9, 20, op="a", module="m", kept=True),
    allocation(7, 20, 64, op="mm", module="m", role="gradient", phase="backward"),
    allocation(8, 10, 20, op="b", module="m", phase="backward"),
    allocation(13, 16, 20, op="a", module="m", kept=True),  # the second micro-batch: its gradient is added to the first
    allocation(15, 17, 20, op="b", module="m", phase="backward"),
    allocation(19, 21, 64, op="norm", phase="optimizer"),
    allocation(24, 39, 8, op="input", role="input", step=2),  # the second step: inputs are placed again
    allocation(25, 27, 20, op="a", module="m", kept=True, step=2),
    allocation(28, 30, 64, op="mm", module="", phase="backward", step=2),  # a gradient is made again
    allocation(29, 31, 20, op="b", module="m", phase="backward", step=2),
)


def test_later_batches_have_the_sizes_of_the_first() -> None:
    sources = find_sources(ledger_of(*RUN, marks=MARKS), WINDOWS)
    assert sources.tolist() == [-1, 1, 2, 3, 4, 5, 3, 5, -1, 1, 3, 4, 5]


@pytest.mark.parametrize(
    ("position", "changes"),
    [
        (6, {"nbytes": 24}),  # another size than in the first micro-batch
        (6, {"op": "c"}),
        (7, {"module": "n"}),
        (7, {"phase": "forward"}),
        (10, {"kept": False}),
        (0, {"phase": "eval"}),  # in no pass, and not of loading
    ],
)
def test_anything_else_is_refused(position: int, changes: dict[str, Any]) -> None:
    run = [*RUN]
    run[position] = replace(run[position], **changes)
    with pytest.raises(CannotReuse):
        find_sources(ledger_of(*run, marks=MARKS), WINDOWS)


@pytest.mark.parametrize("missing", [7, 10])
def test_a_missing_allocation_in_a_later_batch_is_refused(missing: int) -> None:
    run = [each for number, each in enumerate(RUN) if number != missing]
    with pytest.raises(CannotReuse):
        find_sources(ledger_of(*run, marks=MARKS), WINDOWS)


def test_a_ledger_with_other_sizes() -> None:
    ledger = ledger_of(*RUN, marks=MARKS)
    doubled = ledger.with_sizes(ledger.columns.nbytes * 2)
    expected = ledger_of(*(replace(each, nbytes=each.nbytes * 2) for each in RUN), marks=MARKS)
    assert doubled == expected
    assert doubled.peak() == expected.peak() != ledger.peak()
