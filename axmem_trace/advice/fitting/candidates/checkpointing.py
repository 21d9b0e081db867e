"""Gradient checkpointing keeps only each layer's input for backward and calculates the layer a second time.

Without it, everything that backward needs of all layers is kept. Selective checkpointing keeps the results of attention as
well: it saves less, and calculates less twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """Selective checkpointing, then checkpointing of everything, if there is none."""
    if situation.recipe.checkpointing.enabled:
        return
    yield Change(
        settings={"gradient_checkpointing": True, "selective_checkpointing": True},
        cost="layers without attention run twice: slower steps",
    )
    yield Change(settings={"gradient_checkpointing": True, **_without_selective(situation)})


def _without_selective(situation: Situation) -> dict[str, bool]:
    return {"selective_checkpointing": False} if situation.values.get("selective_checkpointing") else {}


CANDIDATE = Candidate(
    name="checkpointing",
    about=__doc__,
    cost="each layer's forward runs twice: steps take about a third longer",
    grade=Grade.SLOWER,
    group="checkpointing",
    propose=propose,
    steps=True,
)
