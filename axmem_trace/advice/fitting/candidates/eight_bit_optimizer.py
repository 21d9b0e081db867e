"""An 8-bit optimizer keeps its states with one byte for each number instead of four.

Blocks of numbers share a scale, so updates differ a little from those of the 32-bit optimizer. Small tensors (under
4,096 elements) keep 32 bits. The states of the paged form are in managed memory, outside PyTorch's allocator.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.candidates.optimizers import FORMS, NO_FORMS


def propose(situation: Situation) -> Iterator[Change]:
    """The 8-bit form and the paged 8-bit form of a 32-bit optimizer."""
    name = situation.recipe.optimizer.name
    forms = FORMS.get(name, NO_FORMS)
    if "8bit" in name:
        return
    if forms.eight_bits:
        yield Change(settings={"optimizer": forms.eight_bits})
    if forms.paged_eight_bits:
        yield Change(
            settings={"optimizer": forms.paged_eight_bits},
            cost="8-bit states: slightly other updates; they may move over PCIe",
        )


CANDIDATE = Candidate(
    name="eight_bit_optimizer",
    about=__doc__,
    cost="8-bit states: slightly other updates",
    grade=Grade.NUMERIC,
    group="optimizer",
    propose=propose,
)
