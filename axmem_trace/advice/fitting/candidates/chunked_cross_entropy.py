"""The chunked cross entropy calculates the loss for a part of the tokens at a time, with plain PyTorch.

The fp32 copies of the logits exist for one chunk only. The logits themselves exist for all tokens. It needs no package.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.candidates.losses import holds_all_logits, switch_loss


def propose(situation: Situation) -> Iterator[Change]:
    """The chunked loss, unless a fused loss is on."""
    if holds_all_logits(situation):
        yield Change(settings=switch_loss(situation, "chunked_cross_entropy"))


CANDIDATE = Candidate(
    name="chunked_cross_entropy",
    about=__doc__,
    cost="the loss takes a little longer",
    grade=Grade.FREE,
    group="loss",
    propose=propose,
)
