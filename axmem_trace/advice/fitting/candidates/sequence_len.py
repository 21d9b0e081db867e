"""Shorter sequences: fewer tokens at a time. Longer samples are cut or left out.

The model sees less of each text, so this is only used with `--allow sequence_len`. `fit` also shows the longest
sequence that fits.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

LEAST = 256


def propose(situation: Situation) -> Iterator[Change]:
    """Three quarters of the length, half, ... down to `LEAST`."""
    length = situation.values.get("sequence_len")
    if not isinstance(length, int):
        return
    for eighths in (6, 4, 2, 1):
        shorter = length * eighths // 8
        if shorter >= LEAST:
            yield Change(settings={"sequence_len": shorter})


CANDIDATE = Candidate(
    name="sequence_len",
    about=__doc__,
    cost="long samples are cut or left out",
    grade=Grade.LEARNING,
    group="sequence_len",
    propose=propose,
    steps=True,
    allow="sequence_len",
)
