"""A smaller micro batch with more accumulation steps: fewer tokens at a time, and the same effective batch.

`micro_batch_size` x `gradient_accumulation_steps` stays the same, so the model learns the same. Small batches use the
card less efficiently.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """Each smaller micro batch that divides the effective one, the largest first."""
    micro = situation.values.get("micro_batch_size")
    steps = situation.recipe.batch.gradient_accumulation_steps
    if not isinstance(micro, int) or isinstance(micro, bool):
        return
    for smaller in range(micro - 1, 0, -1):
        if (micro * steps) % smaller == 0:
            accumulation = micro * steps // smaller
            yield Change(settings={"micro_batch_size": smaller, "gradient_accumulation_steps": accumulation})


CANDIDATE = Candidate(
    name="micro_batch",
    about=__doc__,
    cost="slower steps; the same effective batch",
    grade=Grade.SLOWER,
    group="micro_batch",
    propose=propose,
    steps=True,
)
