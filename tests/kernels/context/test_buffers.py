"""The buffers that attention exchanges in when rows are divided among ranks; each size by hand.

One layer of one rank, in bfloat16 (2 bytes): 2 rows, 4 query heads of size 8, 6 tokens of its own in each row.
A query of its own tokens is 2 x 4 x 6 x 8 x 2 = 768 bytes, of one key-value head 192.
"""

from __future__ import annotations

import pytest
from support.real_context import Case, record_context_on_meta

from axmem_trace.ledger import Allocation, Ledger
from axmem_trace.recipe.parallel import Context

QUERY, KEY = 768, 192


def most_alive(ledger: Ledger, phase: str) -> int:
    inside = [each for each in ledger.allocations if each.phase == phase and each.nbytes > 64]
    return max(sum(other.nbytes for other in inside if _overlap(other, each)) for each in inside)


def _overlap(one: Allocation, other: Allocation) -> bool:
    return one.allocated_tick <= other.allocated_tick < one.freed_tick


def sizes(ledger: Ledger, phase: str) -> list[int]:
    return [each.nbytes for each in ledger.allocations if each.phase == phase and each.nbytes > 64]


def test_heads_are_exchanged_through_two_copies_and_the_result() -> None:
    """Two ranks, 2 key-value heads. Query: what is sent, what is received, and in order: 3 x 768. Key and value are stacked
    (2 x 2 heads x 192 = 768), then sent, received and in order: 4 x 768. The kernel makes its output for all 12 tokens of 2
    heads (768) and its logsumexp (2 rows x 2 heads x 12 tokens x 4 bytes = 192); the output is put in order (768), and
    exchanged through 3 x 768."""
    ledger = record_context_on_meta(Case(Context(heads=2), 4, 2, 6), rank=0)
    assert sizes(ledger, "forward") == [QUERY] * 3 + [QUERY] * 4 + [QUERY, 192] + [QUERY] + [QUERY] * 3


def test_without_grouped_queries_all_heads_are_one_exchange() -> None:
    """Stacked: 3 x 768 = 2304, then sent, received and in order."""
    ledger = record_context_on_meta(Case(Context(heads=2), 4, 4, 6), rank=0)
    assert sizes(ledger, "forward")[:4] == [3 * QUERY] * 4


def test_samples_are_copied_for_the_kernel() -> None:
    """After the exchanges: the query (768) as rows of samples, which the kernel keeps; one key head is in order already.
    Then output and logsumexp."""
    ledger = record_context_on_meta(Case(Context(heads=2), 4, 2, 6, samples=3), rank=0)
    assert sizes(ledger, "forward")[7:10] == [QUERY, QUERY, 192]


@pytest.mark.parametrize(("rank", "seen"), [(0, 1), (3, 4)])
def test_a_gathering_ring_keeps_keys_of_the_ranks_before(rank: int, seen: int) -> None:
    """Four ranks, one key-value head. The keys of 4 ranks (192 each), and a stack of them (768), the same of the values;
    then what the kernel gets and keeps: keys and values of as many ranks as the queries see. Output and logsumexp follow."""
    ledger = record_context_on_meta(Case(Context(ring=4), 4, 1, 6), rank=rank)
    gathered = [KEY] * 4 + [4 * KEY]
    assert sizes(ledger, "forward") == [*gathered, *gathered, seen * KEY, seen * KEY, QUERY, 192]
    kept = [each.nbytes for each in ledger.allocations if each.phase == "forward" and each.kept and each.nbytes > 64]
    assert sorted(kept) == sorted([seen * KEY, seen * KEY, QUERY, 192])


def test_a_ring_of_steps_keeps_only_its_own_keys() -> None:
    """Whatever the number of ranks: in addition to its inputs the output of its own tokens, and the logsumexp,
    2 x 4 x 6 x 4 = 192."""
    for ranks in (2, 4):
        case = Case(Context(ring=ranks, rotation="steps", head_tail=True), 4, 1, 6, balance="head_tail")
        ledger = record_context_on_meta(case, rank=ranks - 1)
        kept = [
            each.nbytes for each in ledger.allocations if each.phase == "forward" and each.kept and each.nbytes > 64
        ]
        assert sorted(kept) == [192, QUERY]


def test_blocks_are_merged_in_fp32() -> None:
    """The last rank of two, second block: the output so far and the block's in fp32 (1536 each), the block's own (768),
    two products and their sum (3 x 1536), with what both have in common left out."""
    ledger = record_context_on_meta(Case(Context(ring=2, rotation="steps"), 4, 1, 6), rank=1)
    assert sizes(ledger, "forward").count(2 * QUERY) == 2 + 3
    assert most_alive(ledger, "forward") > 5 * 2 * QUERY
