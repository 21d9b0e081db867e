"""Gradient checkpointing keeps only each layer's input for backward and calculates the layer a second time.

Without it, all tensors that backward needs are kept, for all layers. Selective checkpointing also keeps the results of
attention: it saves less memory, but calculates less a second time.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """Selective checkpointing, then full checkpointing, if there is no checkpointing yet."""
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
