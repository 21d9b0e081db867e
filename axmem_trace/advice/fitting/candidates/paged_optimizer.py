"""A paged optimizer keeps its states in CUDA managed memory, which the driver moves to the host when the card is full.

The states are the same numbers as before. PyTorch's allocator does not count them, and if the card is full, each step
waits for pages.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.advice.fitting.candidates.optimizers import FORMS, NO_FORMS


def propose(situation: Situation) -> Iterator[Change]:
    """The paged form with the same number of bits."""
    name = situation.recipe.optimizer.name
    forms = FORMS.get(name, NO_FORMS)
    same_bits = forms.paged_eight_bits if "8bit" in name else forms.paged
    if same_bits:
        yield Change(settings={"optimizer": same_bits})


CANDIDATE = Candidate(
    name="paged_optimizer",
    about=__doc__,
    cost="optimizer states may move over PCIe: slower steps",
    grade=Grade.HOST,
    group="optimizer",
    propose=propose,
)
