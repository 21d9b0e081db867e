"""The size of each allocation for any number of tokens in a row, from traces with a few numbers. No torch here.

A size is a polynomial of the length of a row, or of the length rounded up as in kernels. A polynomial with N
coefficients is found with N traces. It is checked with at least one more trace, for which it must return the recorded
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from axmem_trace.ledger import Ledger, same_events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Law(NamedTuple):
    """A polynomial of the length rounded up to a multiple."""

    multiple: int
    degree: int


LAWS = (Law(1, 0), Law(1, 1), Law(128, 1), Law(256, 1), Law(1, 2), Law(128, 2))
"""The simplest first. Tensors have a number of bytes for each token, fused kernels round rows up to their tiles,
unfused attention has a score for each pair of tokens, and block masks have a number for each pair of tiles."""
JUMPS = len(LAWS)
"""No law: a size that grows in jumps (the chunks of a fused loss). Its value is that of the trace with the next longer
rows."""
TOLERANCE = 0.01
"""The largest difference in bytes between a law and a recorded size. It allows for rounding errors of the arithmetic
only."""


class DifferentEvents(Exception):
    """Rows of another length have other events, or their sizes can't be known."""


@dataclass(frozen=True, eq=False)
class SizeLaws:
    """The sizes of a recording's allocations at any length of the rows.

    Attributes:
        lengths: the tokens of a row in each trace, in ascending order.
        sizes: recorded bytes, [traces, allocations].
        laws: for each allocation, the position of its law in `LAWS`, or `JUMPS`.
    """

    lengths: tuple[int, ...]
    sizes: NDArray[np.int64]
    laws: NDArray[np.int8]

    @property
    def num_jumps(self) -> int:
        """The number of allocations without a law."""
        return int((self.laws == JUMPS).sum())

    @property
    def grows(self) -> NDArray[np.bool_]:
        """For each allocation, whether its size depends on the length."""
        return self.laws != 0

    def at(self, indices: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of the allocations `indices`, each for its own number of tokens in a row."""
        import numpy as np

        found = np.empty(len(indices), dtype=np.int64)
        laws = self.laws[indices]
        for number in np.unique(laws).tolist():
            chosen = laws == number
            sizes, lengths = self.sizes[:, indices[chosen]], tokens[chosen]
            found[chosen] = (
                _step_up(self.lengths, sizes, lengths)
                if number == JUMPS
                else _whole(_evaluate(LAWS[number], self.lengths, sizes, lengths))
            )
        return found


def find_laws(traces: Mapping[int, Ledger]) -> SizeLaws:
    """The laws of the sizes in traces that differ only in the length of the rows.

    Raises:
        DifferentEvents: the traces differ in more than sizes.
    """
    import numpy as np

    lengths = tuple(sorted(traces))
    ledgers = [traces[length] for length in lengths]
    longest = ledgers[-1]
    if not all(same_events(longest, ledger) for ledger in ledgers):
        raise DifferentEvents("rows of another length run other operators")
    sizes = np.stack([ledger.columns.nbytes for ledger in ledgers])
    laws = np.full(sizes.shape[1], JUMPS, dtype=np.int8)
    for number, law in enumerate(LAWS):
        if law.degree + 1 >= len(lengths):
            continue  # no trace would be left to check it
        open_ones = np.flatnonzero(laws == JUMPS)
        there = sizes[:, open_ones]
        proved = np.ones(len(open_ones), dtype=bool)
        for length, recorded in zip(lengths, there, strict=True):
            given = _evaluate(law, lengths, there, np.full(len(open_ones), length))
            proved &= np.abs(given - recorded) < TOLERANCE
        laws[open_ones[proved]] = number
    return SizeLaws(lengths, sizes, laws)


def _evaluate(
    law: Law, lengths: tuple[int, ...], sizes: NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The values of the polynomial through the recorded sizes (Lagrange). It uses as many as it needs of the shortest,
    the longest and a middle length.

    Args:
        sizes: [traces, allocations].
        tokens: [allocations].
    """
    import numpy as np

    needed = sorted({0, len(lengths) - 1, len(lengths) // 2}) if law.degree == 2 else [0, len(lengths) - 1]
    needed = needed[-1:] if law.degree == 0 else needed
    points = [_round_up(lengths[number], law.multiple) for number in needed]
    there = -(-tokens // law.multiple) * law.multiple
    total = np.zeros(len(tokens))
    if len(set(points)) < len(points):
        return np.full(len(tokens), np.nan)  # lengths are equal when rounded to this multiple: no check possible
    for number, point in zip(needed, points, strict=True):
        weight = np.ones(len(tokens))
        for other in points:
            if other != point:
                weight = weight * (there - other) / (point - other)
        total += weight * sizes[number]
    return total


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _whole(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bytes, rounded up, and at least 0: a law for rows minus a few tokens is negative for rows without tokens."""
    import numpy as np

    return np.maximum(np.ceil(sizes - TOLERANCE), 0).astype(np.int64)


def _step_up(lengths: tuple[int, ...], sizes: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    positions = np.minimum(np.searchsorted(lengths, tokens), len(lengths) - 1)
    found: NDArray[np.int64] = sizes[positions, np.arange(sizes.shape[1])]
    return found
