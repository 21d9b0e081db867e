"""A smaller batch in evaluation. Evaluation makes all logits in fp32, even if training has a fused loss.

It does not change what the model learns; evaluation only takes longer. The evaluation loss is an average over batches,
so its last digits may change.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """Half of the batch, a quarter, ... down to 1."""
    values = situation.values
    rows = values.get("eval_batch_size") or values.get("micro_batch_size")
    if not situation.recipe.evaluation.enabled or not isinstance(rows, int):
        return
    while rows > 1:
        rows //= 2
        yield Change(settings={"eval_batch_size": rows})


CANDIDATE = Candidate(
    name="evaluation_batch",
    about=__doc__,
    cost="evaluation takes longer",
    grade=Grade.FREE,
    group="evaluation",
    propose=propose,
    steps=True,
)
