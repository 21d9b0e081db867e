"""Our exchanges of context parallelism against ringmaster's own code in real processes: allocation by allocation.

Hand arithmetic for each buffer is in `tests/kernels/test_context.py`.
"""

from __future__ import annotations

import pytest
from support.real_context import Case, record_context_for_real, record_context_on_meta

from axmem_trace.ledger import Ledger
from axmem_trace.recipe.parallel import Context

pytest.importorskip("ringmaster", reason="the test extra is not installed")

CASES: dict[int, dict[str, Case]] = {
    2: {
        "heads": Case(Context(heads=2), 4, 2, 6),
        "heads, not grouped": Case(Context(heads=2), 4, 4, 6),
        "heads, samples": Case(Context(heads=2), 4, 2, 6, samples=3),
        "gathered": Case(Context(ring=2), 4, 1, 6),
        "gathered, samples": Case(Context(ring=2), 4, 1, 6, samples=3),
        "steps": Case(Context(ring=2, rotation="steps"), 4, 1, 6),
        "early and late": Case(Context(ring=2, rotation="steps", head_tail=True), 4, 1, 6, balance="head_tail"),
    },
    4: {
        "heads": Case(Context(heads=4), 8, 4, 6),
        "gathered": Case(Context(ring=4), 4, 1, 6),
        "gathered, samples": Case(Context(ring=4), 4, 1, 6, samples=3),
        "steps": Case(Context(ring=4, rotation="steps"), 4, 1, 6),
        "early and late": Case(Context(ring=4, rotation="steps", head_tail=True), 4, 1, 6, balance="head_tail"),
        "both": Case(Context(heads=2, ring=2), 4, 2, 6),
        "both, samples": Case(Context(heads=2, ring=2), 4, 2, 6, samples=3),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def for_real() -> dict[int, dict[str, list[Ledger]]]:
    return {
        ranks: dict(zip(cases, record_context_for_real(list(cases.values()), ranks), strict=True))
        for ranks, cases in CASES.items()
    }


@pytest.mark.parametrize(
    ("ranks", "rank", "name"),
    [(ranks, rank, name) for ranks in CASES for rank in range(ranks) for name in CASES[ranks]],
)
def test_meta_allocates_what_ringmaster_does(
    ranks: int, rank: int, name: str, for_real: dict[int, dict[str, list[Ledger]]]
) -> None:
    case = CASES[ranks][name]
    ours, theirs = record_context_on_meta(case, rank=rank), for_real[ranks][name][rank]
    assert _sizes(ours) == _sizes(theirs)
    assert _levels(ours) == _levels(theirs)


def _sizes(ledger: Ledger) -> list[tuple[str, int]]:
    """In order; numbers are left out: which of them are on the host is not known on a CPU."""
    return [(each.phase, each.nbytes) for each in _tensors(ledger)]


def _levels(ledger: Ledger) -> list[int]:
    """Bytes that are alive at each allocation."""
    tensors = _tensors(ledger)
    return [
        sum(other.nbytes for other in tensors if other.allocated_tick <= each.allocated_tick < other.freed_tick)
        for each in tensors
    ]


def _tensors(ledger: Ledger) -> list[object]:
    return sorted((each for each in ledger.allocations if each.nbytes > 64), key=lambda each: each.allocated_tick)
