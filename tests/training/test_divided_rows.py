"""Which tokens of a row a rank of a context-parallel group has."""

from __future__ import annotations

import pytest
import torch

from axmem_trace.recipe.parallel import Context
from axmem_trace.training.batches.divided import divide_rows


def whole_rows(tokens: int, *, positions: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.arange(2 * tokens).reshape(2, tokens)
    inputs = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    return inputs | ({"position_ids": (torch.arange(tokens) % 5).expand(2, -1)} if positions else {})


def test_labels_are_shifted_before_rows_are_divided() -> None:
    """7 tokens for 2 ranks: one of padding. The first rank's last label is the second one's first token."""
    first, second = (divide_rows(whole_rows(7), Context(heads=2), rank) for rank in (0, 1))
    assert first["input_ids"][0].tolist() == [0, 1, 2, 3]
    assert first["shift_labels"][0].tolist() == [1, 2, 3, 4]
    assert second["input_ids"][0].tolist() == [4, 5, 6, 0]
    assert second["shift_labels"][0].tolist() == [5, 6, -100, -100]
    assert second["position_ids"][0].tolist() == [4, 5, 6, 7]
    assert "attention_mask" not in first


def test_a_rank_has_a_part_of_the_head_and_of_the_tail() -> None:
    """8 tokens in 4 parts for 2 ranks: the first has parts 0 and 3."""
    context = Context(ring=2, rotation="steps", head_tail=True)
    assert divide_rows(whole_rows(8), context, 0)["input_ids"][0].tolist() == [0, 1, 6, 7]
    assert divide_rows(whole_rows(8), context, 3)["input_ids"][0].tolist() == [2, 3, 4, 5]  # of the second group


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("head_tail", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_are_divided_as_in_ringmaster(ranks: int, head_tail: bool, positions: bool) -> None:
    shard = pytest.importorskip("ringmaster.shard", reason="the test extra is not installed")
    context = Context(ring=ranks, rotation="steps", head_tail=head_tail)
    for rank in range(ranks):
        ours = divide_rows(whole_rows(13, positions=positions), context, rank)
        theirs = shard.shard_collated_batch(
            whole_rows(13, positions=positions),
            cp_rank=rank,
            cp_size=ranks,
            load_balance="head_tail" if head_tail else "contiguous",
        )
        assert ours.keys() == theirs.keys() - {shard.CP_SHARD_KEY}
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
