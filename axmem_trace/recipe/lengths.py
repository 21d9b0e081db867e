"""The lengths of a batch's rows, if they depend on the data. Frozen types, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Collation = Literal["full", "longest", "joined", "packed"]
"""How samples become a row.

`full`: every row has the full length. `longest`: a row is as long as the longest sample of the batch. `joined`: one row has
all samples of the batch, one after the other. `packed`: packed rows, without padding to the full length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLengths:
    """The lengths of rows in different batches. `Batch.row_tokens` is the largest possible length.

    Attributes:
        collation: see `Collation`.
        multiple: the length of a batch is rounded up to a multiple of this.
        samples: tokens of each sample; each batch draws some samples at random; empty: the lengths are not known.
        shortest, longest: if `samples` is empty, the range of a sample's tokens; 0: assumed, from `row_tokens`.
        asked: the user requests figures for rows of varying length.
        source: the origin of the lengths, for users; empty: they are assumed.
    """

    collation: Collation = "full"
    multiple: int = 1
    samples: tuple[int, ...] = ()
    shortest: int = 0
    longest: int = 0
    asked: bool = False
    source: str = ""

    @property
    def vary(self) -> bool:
        """Whether batches differ in length."""
        return self.collation != "full"

    @property
    def known(self) -> bool:
        """Whether the user has given the lengths of samples."""
        return bool(self.samples or self.longest)
