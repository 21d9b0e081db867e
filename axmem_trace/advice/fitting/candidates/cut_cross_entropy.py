"""Cut Cross Entropy calculates the loss in tiles of the vocabulary and never stores all logits.

Logits and their gradient are often the largest tensors of a step: tokens x vocabulary, several times, partly in fp32. This
loss needs axolotl's plugin and the package `cut-cross-entropy`, and training in bf16 or fp16. The loss is the same,
except for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.candidates.losses import holds_all_logits, switch_loss


def propose(situation: Situation) -> Iterator[Change]:
    """The plugin and its key, unless a fused loss is on."""
    if holds_all_logits(situation):
        yield Change(
            settings={**situation.with_plugin("cut_cross_entropy"), **switch_loss(situation, "cut_cross_entropy")}
        )


CANDIDATE = Candidate(
    name="cut_cross_entropy",
    about=__doc__,
    cost="nothing known; needs the package cut-cross-entropy",
    grade=Grade.FREE,
    group="loss",
    propose=propose,
)
