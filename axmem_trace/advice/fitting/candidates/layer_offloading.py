"""Layer offloading keeps frozen layers in host memory and copies them to the card one after another.

It is for training with adapters: trainable weights stay on the card. In each step, all frozen weights are copied over
PCIe twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """Layer offloading, if it is off."""
    if not situation.recipe.checkpointing.layer_offloading:
        yield Change(settings={"layer_offloading": True})


CANDIDATE = Candidate(
    name="layer_offloading",
    about=__doc__,
    cost="all frozen weights pass over PCIe in each step: much slower",
    grade=Grade.HOST,
    group="layer_offloading",
    propose=propose,
    slow=True,
)
