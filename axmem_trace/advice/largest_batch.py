"""The largest micro batch with which a run fits a card, for many cards. Sizes are scaled from recordings of three micro
batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.scaled import NotOnALine
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.training.scaled_runs import ScaledRun
from axmem_trace.training.shared_traces import replay_once

MAX_MICRO_BATCH = 4096
"""Larger micro batches are not tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LargestBatch:
    """The largest `micro_batch_size` that fits; the next larger one does not.

    Attributes:
        value: the largest value; 0: even one row does not fit.
        recorded: whether this micro batch and the next one were recorded; if not, their sizes are scaled.
        is_limit: whether the largest micro batch that may be tried fits.
    """

    value: int
    recorded: bool = False
    is_limit: bool = False


class BatchSearch:
    """Finds the largest micro batch of a run, for cards on which the run has the same trace.

    Args:
        record: returns the ledgers of the recorded ranks for a number of rows.
        rows: the `micro_batch_size` of the configuration.
    """

    def __init__(self, record: Callable[[int], Sequence[Ledger]], rows: int) -> None:
        self._run, self._rows = ScaledRun(record, rows), rows
        self._live: dict[int, int] = {}

    def largest(self, recipe: Recipe, *, recorded: bool = False) -> LargestBatch | None:
        """The largest micro batch on the recipe's card; None: sizes are not linear in the rows, and it is not
        `recorded`.

        Args:
            recorded: whether the run is recorded with this micro batch and the next larger one, so that both are
                certain.
        """
        try:
            found = self._search(recipe)
        except (NotOnALine, ConfigError):
            if not recorded:
                return None
            self._run.scales = False
        try:
            found = self._search(recipe)
            while recorded and not self._is_sure(recipe, found):
                found = self._search(recipe)
        except ConfigError:
            return None
        finally:
            self._run.scales = True
        return LargestBatch(value=found, recorded=recorded, is_limit=found == MAX_MICRO_BATCH)

    def _is_sure(self, recipe: Recipe, found: int) -> bool:
        """Whether recordings give the same result. From then on, they are used instead of the scaled sizes."""
        self._run.record(max(found, 1))
        self._run.record(found + 1)
        self._live.clear()
        return (found == 0 or self._fits(recipe, found)) and not self._fits(recipe, found + 1)

    def _search(self, recipe: Recipe) -> int:
        """The largest number of rows that fits with all memory that the allocator reserves. The search starts from the
        largest number of rows whose tensors alone fit."""
        most = self._most_live(recipe)
        low, high = 0, most + 1
        step = 1
        while high - low > 1:
            middle = max(low + 1, high - step)
            if self._fits(recipe, middle):
                low = middle
                break
            high, step = middle, 2 * step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(recipe, middle) else (low, middle)
        return low

    def _most_live(self, recipe: Recipe) -> int:
        room, low, high = _room(recipe), 0, self._rows
        while high <= MAX_MICRO_BATCH and self._live_bytes(high) <= room:
            low, high = high, 2 * high
        high = min(high, MAX_MICRO_BATCH + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._live_bytes(middle) <= room else (low, middle)
        return low

    def _live_bytes(self, rows: int) -> int:
        if rows not in self._live:
            self._live[rows] = self._run.live_bytes(rows)
        return self._live[rows]

    def _fits(self, recipe: Recipe, rows: int) -> bool:
        """Whether the run fits, as in the verdict of a report: no request fails, and the margin stays free."""
        capacity_bytes = recipe.gpu.memory_bytes - recipe.gpu.outside_bytes
        for ledger in self._run.ledgers(rows):
            reservation = replay_once(ledger, recipe.allocator, capacity_bytes=max(capacity_bytes, 1))
            if reservation.out_of_memory is not None or reservation.peak_reserved_bytes > _room(recipe):
                return False
        return True


def _room(recipe: Recipe) -> int:
    """The bytes that the allocator may reserve."""
    gpu = recipe.gpu
    return gpu.memory_bytes - gpu.outside_bytes - gpu.margin_bytes
