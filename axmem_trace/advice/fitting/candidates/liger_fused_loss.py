"""Liger's fused linear cross entropy calculates logits, loss and their gradients in chunks of tokens.

Training never stores all logits; evaluation still does. It needs axolotl's plugin and the package `liger-kernel`. The
loss is the same, except for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.candidates.losses import holds_all_logits, switch_loss

KEY = "liger_fused_linear_cross_entropy"


def propose(situation: Situation) -> Iterator[Change]:
    """The plugin and its key, unless a fused loss is on."""
    if holds_all_logits(situation):
        yield Change(settings={**situation.with_plugin("liger"), **switch_loss(situation, KEY)})


CANDIDATE = Candidate(
    name="liger_fused_loss",
    about=__doc__,
    cost="nothing known; needs the package liger-kernel",
    grade=Grade.FREE,
    group="loss",
    propose=propose,
)
