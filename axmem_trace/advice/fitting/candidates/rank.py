"""A smaller rank of LoRA: fewer trainable weights, gradients and optimizer states.

The adapter can express less, so this is only used with `--allow rank`. `lora_alpha` is divided by the same number, so
the adapter's scale stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

LEAST = 4


def propose(situation: Situation) -> Iterator[Change]:
    """Half of the rank, a quarter, ... down to `LEAST`."""
    rank, alpha = situation.values.get("lora_r"), situation.values.get("lora_alpha")
    if situation.recipe.adapter.kind not in ("lora", "qlora") or not isinstance(rank, int):
        return
    while rank >= 2 * LEAST and rank % 2 == 0:
        rank //= 2
        scaled = {}
        if isinstance(alpha, int) and alpha % 2 == 0:
            alpha //= 2
            scaled = {"lora_alpha": alpha}
        yield Change(settings={"lora_r": rank, **scaled})


CANDIDATE = Candidate(
    name="rank",
    about=__doc__,
    cost="the adapter can express less",
    grade=Grade.LEARNING,
    group="rank",
    propose=propose,
    steps=True,
    allow="rank",
)
