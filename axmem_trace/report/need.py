"""What a card must have for the run, and whether everything that the run does is possible with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.rank_types import RankUse
from axmem_trace.report.ranks import RankRun
from axmem_trace.report.types import Engine, OutOfMemory, Peak
from axmem_trace.report.varying import VaryingRows


class Need(NamedTuple):
    """Memory of the card that needs the most.

    Attributes:
        bytes: all included.
        can_run: no request fails on the named card.
        failure: the request that fails with rows of the full length, if the verdict is about those.
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
    """The need of the rank with the largest parts, with rows of the full length or with rows that vary.

    If the user says how long samples are, rows of the full length do not count, except on several GPUs with unequal parts,
    where rank 0 alone is simulated.
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
