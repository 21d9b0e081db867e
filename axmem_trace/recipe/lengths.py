"""How long the rows of a batch are, where the data decides it. Frozen, and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Collation = Literal["full", "longest", "joined", "packed"]
"""How samples become a row: always of full length; as long as the longest sample of the batch; all samples of the batch one
after the other; packed, without padding to the full length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLengths:
    """The rows' lengths from batch to batch. `Batch.row_tokens` is the longest that there can be.

    Attributes:
        collation: as above.
        multiple: the length of a batch is rounded up to a multiple of this.
        samples: tokens of samples, of which each batch draws some at random; empty: they are not known.
        shortest, longest: where `samples` is empty, the range of a sample's tokens; 0: assumed, from `row_tokens`.
        asked: the figures for rows that vary are requested.
        source: where the lengths are from, in words; empty: they are assumed.
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
        """Whether the user has said how long samples are."""
        return bool(self.samples or self.longest)
