"""Activation offloading moves what backward needs to host memory in forward, and back in backward.

`true` moves the tensors that checkpointing keeps, on a separate stream; `hidden_states` moves only each layer's input.
Both need gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

KINDS = ("hidden_states", True)
"""In rising order of what is moved."""


def propose(situation: Situation) -> Iterator[Change]:
    """Each kind of offloading, if nothing is offloaded yet."""
    checkpointing = situation.recipe.checkpointing
    if checkpointing.offload != "none" or checkpointing.selective_offload:
        return
    on = {} if checkpointing.enabled else {"gradient_checkpointing": True}
    for kind in KINDS:
        yield Change(settings={**on, "activation_offloading": kind})


CANDIDATE = Candidate(
    name="activation_offloading",
    about=__doc__,
    cost="moves activations over PCIe: slower steps",
    grade=Grade.HOST,
    group="activation_offloading",
    propose=propose,
    steps=True,
    slow=True,
)
