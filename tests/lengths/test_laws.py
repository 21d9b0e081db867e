"""The law of each size, and its check."""

from __future__ import annotations

import numpy as np
import pytest

from axmem_trace.ledger import Allocation, Ledger, Mark
from axmem_trace.lengths.laws import JUMPS, LAWS, DifferentEvents, Law, find_laws

SIZES = {
    "constant": lambda t: 4096,
    "tokens": lambda t: 3 * t * 8 + 64,
    "a token less": lambda t: 2 * (4 * t - 1),
    "tiles": lambda t: 16 * (-(-t // 128) * 128),
    "scores": lambda t: 4 * t * t,
    "scores and more": lambda t: 4 * t * t + 6 * t,
    "pairs of tiles": lambda t: 4 * (-(-t // 128)) ** 2,
    "jumps": lambda t: 1 << (t - 1).bit_length(),
}


def recording(tokens: int, *, extra: bool = False) -> Ledger:
    """One allocation for each kind of size."""
    sizes = [size(tokens) for size in SIZES.values()] + [1] * extra
    allocations = [Allocation(nbytes=nbytes, allocated_tick=tick, op=str(tick)) for tick, nbytes in enumerate(sizes)]
    return Ledger(allocations=allocations, marks=(Mark(tick=0, phase="forward", step=1),), ticks=100)


def test_each_size_gets_the_simplest_law_that_all_traces_confirm():
    laws = find_laws({tokens: recording(tokens) for tokens in (576, 1088, 1600, 2048)})
    found = {name: LAWS[law] if law != JUMPS else None for name, law in zip(SIZES, laws.laws.tolist(), strict=True)}
    assert found == {
        "constant": Law(1, 0),
        "tokens": Law(1, 1),
        "a token less": Law(1, 1),
        "tiles": Law(128, 1),
        "scores": Law(1, 2),
        "scores and more": Law(1, 2),
        "pairs of tiles": Law(128, 2),
        "jumps": None,
    }
    assert laws.num_jumps == 1
    assert laws.grows.tolist() == [False, *[True] * 7]


@pytest.mark.parametrize("tokens", [1, 64, 500, 640, 1900, 2048])
def test_sizes_at_lengths_that_were_not_traced(tokens):
    laws = find_laws({each: recording(each) for each in (576, 1088, 1600, 2048)})
    sizes = laws.at(np.arange(len(SIZES)), np.full(len(SIZES), tokens))
    expected = [size(tokens) for size in SIZES.values()]
    assert sizes[:-1].tolist() == expected[:-1]
    # 2 to the power of the next whole number: as in the next longer trace, and never less than the real size
    assert sizes[-1] == SIZES["jumps"](next(each for each in (576, 1088, 1600, 2048) if each >= tokens))
    assert sizes[-1] >= expected[-1]


def test_a_quadratic_law_needs_a_fourth_trace_as_a_check():
    laws = find_laws({tokens: recording(tokens) for tokens in (576, 1600, 2048)})
    assert laws.num_jumps == 4


def test_a_law_that_one_trace_contradicts_is_not_used():
    traces = {tokens: recording(tokens) for tokens in (576, 1088, 1600, 2048)}
    wrong = traces[1088].columns.nbytes
    wrong[1] += 512
    assert find_laws(traces).laws[1] == JUMPS


def test_other_events_are_refused():
    with pytest.raises(DifferentEvents, match="other operators"):
        find_laws({576: recording(576), 1600: recording(1600), 2048: recording(2048, extra=True)})


def test_a_size_is_never_negative():
    """The size of rows x tokens - 1 tokens of 2 bytes: this law is negative for 0 tokens."""
    laws = find_laws({tokens: recording(tokens) for tokens in (576, 1600, 2048)})
    assert laws.at(np.array([2]), np.array([0])).tolist() == [0]
