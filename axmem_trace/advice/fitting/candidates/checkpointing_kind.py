"""PyTorch has two kinds of checkpointing, reentrant and non-reentrant. It depends on the model which of them needs less
memory.

The kinds differ in when tensors of the recomputed layer are freed, and in what is recomputed. With LoRA kernels or an 8-bit
base, one of them often needs much more. The results are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

KEY = "gradient_checkpointing_kwargs"


def propose(situation: Situation) -> Iterator[Change]:
    """The other kind; selective checkpointing has only one."""
    checkpointing = situation.recipe.checkpointing
    if not checkpointing.enabled or checkpointing.selective_save:
        return
    given = situation.values.get(KEY)
    kwargs = dict(given) if isinstance(given, Mapping) else {}
    yield Change(settings={KEY: {**kwargs, "use_reentrant": not checkpointing.use_reentrant}})


CANDIDATE = Candidate(
    name="checkpointing_kind",
    about=__doc__,
    cost="nothing known",
    grade=Grade.FREE,
    group="checkpointing",
    propose=propose,
)
