"""The memory that a card must have for the run, and whether the run is possible with the named card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.rank_types import RankUse
from axmem_trace.report.ranks import RankRun
from axmem_trace.report.types import Engine, OutOfMemory, Peak
from axmem_trace.report.varying import VaryingRows


class Need(NamedTuple):
    """The needed memory of the card that needs the most.

    Attributes:
        bytes: the needed memory, with everything included.
        can_run: whether no request fails on the named card.
        failure: the request that fails with rows of the full length, if the verdict is about such rows.
    """

    bytes: int
    can_run: bool
    failure: OutOfMemory | None


def find_need(
    recipe: Recipe,
    peak: Peak,
    *,
    engine: Engine | None,
    ranks: Sequence[RankUse],
    runs: Sequence[RankRun],
    failure: OutOfMemory | None,
    varying: VaryingRows | None,
) -> Need:
    """The needed memory of the rank with the largest shards, with rows of the full length or of different lengths.

    If the user states the lengths of the samples, rows of the full length do not count. They do count with several GPUs
    and unequal shards, because only rank 0 is simulated then.
    """
    full = max([engine.together_bytes if engine else peak.device_bytes, *(use.device_bytes for use in ranks)])
    failed = failure is not None or any(run.reservation.out_of_memory is not None for run in runs)
    starts = engine is None or engine.starts
    if varying is None:
        return Need(full, not failed and starts, failure)
    vary = varying.worst_reserved_bytes + recipe.gpu.outside_bytes
    if varying.known and len(ranks) < 2:
        return Need(vary, varying.failures == 0 and starts, None)
    return Need(max(full, vary), not failed and varying.failures == 0 and starts, failure)
