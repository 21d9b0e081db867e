"""The lengths of the batches of a run, drawn at random from a fixed seed. No torch here."""

from __future__ import annotations

from random import Random

from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Batch

SHORTEST_SHARE = 1 / 16
"""Assumed: the shortest sample has this share of the tokens of the longest one that `sequence_len` allows."""
PACKED_SHARE = 0.9
"""Assumed: in a packed row without padding, samples fill at least this share of the row."""


def draw_steps(lengths: RowLengths, batch: Batch, seed: int, num_steps: int, num_micro: int) -> list[list[int]]:
    """The tokens of a row for each micro-batch of each step.

    The last step has a batch with the longest possible rows: a run of thousands of steps has such a batch at some time,
    and needs the most memory if many other batches came before it.

    Args:
        batch: its number of rows, and the largest length of a row.
        seed: the same seed gives the same lengths, on every machine.
    """
    dice = Random(seed)
    steps = [[_draw_row(lengths, batch, dice) for _ in range(num_micro)] for _ in range(num_steps)]
    steps[-1][int(dice.random() * num_micro)] = longest_row(lengths, batch)
    return steps


def longest_row(lengths: RowLengths, batch: Batch) -> int:
    """The tokens of the longest row that a batch can have."""
    most = max(lengths.samples, default=lengths.longest or longest_sample(lengths, batch))
    return _collate(lengths, batch, [most] * _samples_of_row(lengths, batch))


def longest_sample(lengths: RowLengths, batch: Batch) -> int:
    """The tokens of the longest sample that fits in a row."""
    if lengths.collation == "joined":
        return batch.row_tokens // max(1, batch.samples_per_row)
    return batch.row_tokens


def describe_lengths(lengths: RowLengths, batch: Batch) -> str:
    """The assumed or known lengths, in words."""
    if lengths.source:
        return lengths.source
    if lengths.collation == "packed":
        return f"packed rows are filled to {PACKED_SHARE:.0%} or more"
    most = longest_sample(lengths, batch)
    return f"samples have {max(1, round(SHORTEST_SHARE * most))} to {most} tokens, short ones more often"


def _draw_row(lengths: RowLengths, batch: Batch, dice: Random) -> int:
    if lengths.collation == "packed":
        share = PACKED_SHARE + (1 - PACKED_SHARE) * dice.random()
        return max(1, int(share * batch.row_tokens))
    drawn = [_draw_sample(lengths, batch, dice) for _ in range(_samples_of_row(lengths, batch))]
    return _collate(lengths, batch, drawn)


def _samples_of_row(lengths: RowLengths, batch: Batch) -> int:
    """How many samples determine the length of a batch's rows: those of a joined row, or one for each row."""
    return max(1, batch.samples_per_row if lengths.collation == "joined" else batch.rows)


def _draw_sample(lengths: RowLengths, batch: Batch, dice: Random) -> int:
    """The length of one of the known samples. If none are known: a length between the shortest and the longest, drawn
    uniformly on a logarithmic scale."""
    if lengths.samples:
        return lengths.samples[int(dice.random() * len(lengths.samples))]
    most = lengths.longest or longest_sample(lengths, batch)
    least = lengths.shortest or max(1, round(SHORTEST_SHARE * most))
    return min(most, round(least * (most / least) ** dice.random()))


def _collate(lengths: RowLengths, batch: Batch, samples: list[int]) -> int:
    tokens = batch.row_tokens if lengths.collation == "packed" and not lengths.samples else 0
    tokens = tokens or (sum(samples) if lengths.collation == "joined" else max(samples))
    return min(-(-tokens // lengths.multiple) * lengths.multiple, batch.row_tokens)
