"""The ledger's queries, tested with five allocations that are written by hand."""

import random

import pytest

from axmem_trace.ledger import BUCKETS, NEVER, Allocation, Ledger, Mark, Moment, block_bytes

# tick:        0     1         2       3       4       5      6      7
# weights      |-----allocated------------------------------------------------>
# activation                   allocated------------------freed(6)
# transient                            allocated----freed(5)
# gradient                                     allocated(4)--------------------
# on the CPU         (never counts)
WEIGHT = Allocation(nbytes=10_000, allocated_tick=1, phase="load", step=0, role="weight", module="embed")
ACTIVATION = Allocation(
    nbytes=5_000, allocated_tick=2, freed_tick=6, module="layers.0", op="aten.mm.default", kept=True
)
TRANSIENT = Allocation(nbytes=3_000, allocated_tick=3, freed_tick=5, module="layers.1", op="aten.silu.default")
GRADIENT = Allocation(
    nbytes=10_000, allocated_tick=4, phase="backward", role="gradient", module="embed", op="aten.add.Tensor"
)
ON_CPU = Allocation(nbytes=1_000_000, allocated_tick=1, freed_tick=7, device="cpu")
MARKS = (
    Mark(tick=0, phase="load", step=0),
    Mark(tick=2, phase="forward", step=1),
    Mark(tick=4, phase="backward", step=1),
    Mark(tick=7, phase="optimizer", step=1),
)
LEDGER = Ledger(allocations=(WEIGHT, ACTIVATION, TRANSIENT, GRADIENT, ON_CPU), marks=MARKS, ticks=8)

# In 512-byte blocks: 10000 -> 20 = 10240; 5000 -> 10 = 5120; 3000 -> 6 = 3072
LEVELS = [(1, 10_240), (2, 15_360), (3, 18_432), (4, 28_672), (5, 25_600), (6, 20_480)]


@pytest.mark.parametrize(("nbytes", "whole"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_blocks(nbytes, whole):
    assert block_bytes(nbytes) == whole


def test_events_in_order_of_time():
    found = [(event.tick, event.delta, event.index) for event in LEDGER.events()]
    assert found == [(1, 10_240, 0), (2, 5_120, 1), (3, 3_072, 2), (4, 10_240, 3), (5, -3_072, 2), (6, -5_120, 1)]
    assert [event.allocation for event in LEDGER.events()][4] is TRANSIENT


def test_moves_are_the_events():
    moves = [(event.tick, event.index, int(event.delta < 0)) for event in LEDGER.events()]
    assert list(LEDGER.moves()) == moves


def test_moves_of_one_tick_are_in_ledger_order_and_a_free_follows_its_allocation():
    twins = tuple(Allocation(nbytes=512, allocated_tick=3, freed_tick=3) for _ in range(2))
    assert list(Ledger(allocations=twins, marks=(), ticks=4).moves()) == [(3, 0, 0), (3, 0, 1), (3, 1, 0), (3, 1, 1)]


def test_levels_and_timeline():
    assert list(zip(*LEDGER.levels, strict=True)) == LEVELS
    assert [(moment.tick, moment.allocated_bytes) for moment in LEDGER.timeline] == LEVELS
    assert LEDGER.timeline[2] == Moment(
        tick=3, allocated_bytes=18_432, phase="forward", step=1, module="layers.1", op="aten.silu.default"
    )
    assert [moment.phase for moment in LEDGER.timeline] == ["load", "forward", "forward"] + ["backward"] * 3


def test_allocated_at_any_tick():
    assert [LEDGER.allocated_at(tick) for tick in (-1, 0, *range(1, 9))] == [
        0,
        0,
        10_240,
        15_360,
        18_432,
        28_672,
        25_600,
        20_480,
        20_480,
        20_480,
    ]


def test_alive_at():
    assert LEDGER.alive_at(4) == (WEIGHT, ACTIVATION, TRANSIENT, GRADIENT)
    assert LEDGER.alive_at(5) == (WEIGHT, ACTIVATION, GRADIENT)  # not alive at the tick at which it is freed


def test_mark_at():
    assert [
        LEDGER.mark_at(tick).phase for tick in (0, 1, 2, 3, 4, 6, 7, 99)
    ] == "load load forward forward backward backward optimizer optimizer".split()
    assert Ledger(allocations=(), marks=(), ticks=0).mark_at(3) == Mark(tick=0, phase="load", step=0)


def test_the_peak_and_where_it_is():
    assert LEDGER.peak() == Moment(
        tick=4, allocated_bytes=28_672, phase="backward", step=1, module="embed", op="aten.add.Tensor"
    )


def test_the_peak_of_a_phase_or_step():
    assert LEDGER.peak(phase="forward").tick == 3
    assert LEDGER.peak(phase="load", step=0).allocated_bytes == 10_240
    assert LEDGER.peak(step=1) == LEDGER.peak()
    assert LEDGER.peak(phase="eval") == Moment(tick=0, allocated_bytes=0, phase="eval", step=0)
    assert LEDGER.peak(step=2).allocated_bytes == 0


def test_a_phase_begins_with_what_is_alive():
    # Nothing is allocated or freed in the optimizer: its level is that at the end of backward, and the sum of that
    # tick's buckets equals it.
    peak = LEDGER.peak(phase="optimizer")
    assert peak == Moment(tick=6, allocated_bytes=20_480, phase="optimizer", step=1)
    assert sum(LEDGER.by_bucket(peak.tick).values()) == peak.allocated_bytes


def test_of_equal_peaks_the_first_one_with_an_event_is_returned():
    allocations = (
        Allocation(nbytes=512, allocated_tick=1, freed_tick=2),
        Allocation(nbytes=512, allocated_tick=3, freed_tick=5, op="second"),
    )
    marks = (Mark(tick=0, phase="forward", step=1), Mark(tick=4, phase="backward", step=1))
    ledger = Ledger(allocations=allocations, marks=marks, ticks=6)
    assert (ledger.peak().tick, ledger.peak().phase) == (1, "forward")
    # backward begins with 512 bytes from the phase before: the tick before its mark
    assert (ledger.peak(phase="backward").tick, ledger.peak(phase="backward").op) == (3, "")


def test_sums_by_any_key():
    assert LEDGER.by(lambda allocation: allocation.module, tick=4) == {
        "embed": 20_480,
        "layers.0": 5_120,
        "layers.1": 3_072,
    }


def test_by_bucket():
    found = LEDGER.by_bucket(4)
    assert tuple(found) == BUCKETS
    assert found == {
        "weights": 10_240,
        "adapters": 0,
        "gradients": 10_240,
        "optimizer": 0,
        "activations": 5_120,
        "workspace": 3_072,
        "reference": 0,
    }
    assert sum(found.values()) == LEDGER.allocated_at(4)


def test_an_empty_ledger():
    ledger = Ledger(allocations=(), marks=MARKS, ticks=0)
    assert (list(ledger.events()), ledger.timeline, ledger.alive_at(1), ledger.allocated_at(1)) == ([], (), (), 0)
    assert ledger.peak().allocated_bytes == 0


def test_marks_need_not_be_sorted():
    shuffled = Ledger(allocations=LEDGER.allocations, marks=MARKS[::-1], ticks=8)
    assert shuffled.timeline == LEDGER.timeline
    assert shuffled.peak(phase="optimizer") == LEDGER.peak(phase="optimizer")
    assert shuffled.mark_at(3) == MARKS[1]


def test_fast_queries_equal_the_plain_definitions():
    dice = random.Random(7)
    ticks = iter(dice.sample(range(1, 2001), 2000))
    allocations = []
    for _ in range(700):
        allocated, freed = sorted((next(ticks), next(ticks)))
        freed = dice.choice((freed, freed, freed, NEVER))
        allocations.append(Allocation(nbytes=dice.randrange(0, 9000), allocated_tick=allocated, freed_tick=freed))
    starts = sorted(dice.sample(range(2, 2000), 9))
    marks = tuple(
        Mark(tick=tick, phase=dice.choice(("forward", "backward")), step=dice.choice((1, 2))) for tick in starts
    )
    ledger = Ledger(
        allocations=tuple(sorted(allocations, key=lambda each: each.allocated_tick)), marks=marks, ticks=2001
    )

    def level(tick):
        return sum(each.block_bytes for each in ledger.allocations if each.allocated_tick <= tick < each.freed_tick)

    assert all(ledger.allocated_at(tick) == level(tick) for tick in range(0, 2001, 7))
    spans = [(mark, end) for mark, end in zip(marks, [*starts[1:], 2001], strict=True)]
    for phase in ("forward", "backward"):
        for step in (1, 2):
            # a span begins with the level before its first tick
            expected = max(
                (
                    level(tick)
                    for mark, end in spans
                    if (mark.phase, mark.step) == (phase, step)
                    for tick in range(mark.tick - 1, end)
                ),
                default=0,
            )
            peak = ledger.peak(phase=phase, step=step)
            assert peak.allocated_bytes == expected
            assert ledger.allocated_at(peak.tick) == expected


def test_intervals_contain_all_allocations_and_frees():
    """Before the first mark, the phase is loading. An event at a mark's tick comes after the mark. An interval may be
    empty."""
    allocations = tuple(Allocation(nbytes=512, allocated_tick=tick, freed_tick=tick + 3) for tick in (1, 2, 5))
    marks = [
        Mark(tick=tick, phase=phase, step=1) for tick, phase in ((2, "forward"), (6, "backward"), (7, "optimizer"))
    ]
    ledger = Ledger(allocations=allocations, marks=(marks[1], marks[2], marks[0]), ticks=9)
    # Moves: allocations at 1, 2 and 5, frees at 4, 5 and 8.
    found = [(mark.phase, start, end) for mark, start, end in ledger.intervals]
    assert found == [("load", 0, 1), ("forward", 1, 5), ("backward", 5, 5), ("optimizer", 5, 6)]
    first = Ledger(allocations=allocations, marks=(Mark(tick=0, phase="forward", step=1),), ticks=9)
    assert [(mark.phase, start, end) for mark, start, end in first.intervals] == [("forward", 0, 6)]
    assert [mark.phase for mark, _, _ in Ledger(allocations=(), marks=(), ticks=0).intervals] == ["load"]
