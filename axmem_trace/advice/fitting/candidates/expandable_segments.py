"""With expandable segments, PyTorch's allocator makes a segment larger, instead of leaving parts of several segments
unused.

axolotl sets `PYTORCH_ALLOC_CONF=expandable_segments:True`, unless the environment already has a value. This is an
environment variable, not a key of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
ON = "expandable_segments:True"


def propose(situation: Situation) -> Iterator[Change]:
    """The variable, if the environment has another value."""
    allocator = situation.recipe.allocator
    if allocator.backend == "native" and not allocator.expandable_segments:
        yield Change(environment=dict.fromkeys(VARIABLES, ON))


CANDIDATE = Candidate(
    name="expandable_segments",
    about=__doc__,
    cost="nothing known",
    grade=Grade.FREE,
    group="allocator",
    propose=propose,
)
