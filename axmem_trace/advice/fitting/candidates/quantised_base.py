"""A base model with 4 or 8 bits for each weight, for training with an adapter.

The frozen weights need a quarter or half of their bytes. The adapter is trained on a slightly different model, so this
is only used with `--allow quantised_base`.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """8 bits, then 4 bits, for an adapter on a base that is not quantised; 4 bits instead of 8."""
    recipe = situation.recipe
    method = recipe.quantisation.method
    if recipe.adapter.kind not in ("lora", "qlora") or method not in ("none", "bnb_8bit"):
        return
    if method == "none":
        yield Change(settings={"load_in_8bit": True}, cost="the frozen weights have 8 bits")
    yield Change(settings={"adapter": "qlora", "load_in_8bit": False, "load_in_4bit": True})


CANDIDATE = Candidate(
    name="quantised_base",
    about=__doc__,
    cost="the frozen weights have 4 bits",
    grade=Grade.LEARNING,
    group="base",
    propose=propose,
    allow="quantised_base",
)
