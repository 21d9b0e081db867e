"""The largest micro batch with which a run fits a card, for many cards: sizes are scaled from recordings of three."""

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
"""Larger ones are not looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LargestBatch:
    """The largest `micro_batch_size` that fits; the next larger one does not.

    Attributes:
        value: 0: not even one row fits.
        recorded: it and the next one were recorded; else their sizes are scaled.
        is_limit: the largest that is looked for fits.
    """

    value: int
    recorded: bool = False
    is_limit: bool = False


class BatchSearch:
    """Looks for the largest micro batch of a run on cards on which it has the same trace.

    Args:
        record: the ledgers of the recorded ranks, with so many rows.
        rows: `micro_batch_size` of the configuration.
    """

    def __init__(self, record: Callable[[int], Sequence[Ledger]], rows: int) -> None:
        self._run, self._rows = ScaledRun(record, rows), rows
        self._live: dict[int, int] = {}

    def largest(self, recipe: Recipe, *, recorded: bool = False) -> LargestBatch | None:
        """The largest on the recipe's card; None: sizes do not grow in step with the rows, and it is not `recorded`.

        Args:
            recorded: record the run with it and with the next larger one, so that both are sure.
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
        """Whether the recordings agree; they are in place of what was scaled from then on."""
        self._run.record(max(found, 1))
        self._run.record(found + 1)
        self._live.clear()
        return (found == 0 or self._fits(recipe, found)) and not self._fits(recipe, found + 1)

    def _search(self, recipe: Recipe) -> int:
        """Between the most rows whose tensors alone fit, and the most that fit with all that the allocator holds."""
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
        """As the verdict of a report: no request fails, and the margin stays free."""
        capacity_bytes = recipe.gpu.memory_bytes - recipe.gpu.outside_bytes
        for ledger in self._run.ledgers(rows):
            reservation = replay_once(ledger, recipe.allocator, capacity_bytes=max(capacity_bytes, 1))
            if reservation.out_of_memory is not None or reservation.peak_reserved_bytes > _room(recipe):
                return False
        return True


def _room(recipe: Recipe) -> int:
    """Bytes that the allocator may hold."""
    gpu = recipe.gpu
    return gpu.memory_bytes - gpu.outside_bytes - gpu.margin_bytes
