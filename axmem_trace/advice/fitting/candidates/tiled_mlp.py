"""A tiled MLP processes a part of the tokens at a time, so the wide tensors between its two matrices are small.

It helps with long sequences. Each tile is calculated twice, like a checkpointed layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation


def propose(situation: Situation) -> Iterator[Change]:
    """The tiled MLP; with Liger's MLP, the form that axolotl combines with it."""
    kernels = situation.recipe.kernels
    if not kernels.tiled_mlp:
        original = {"tiled_mlp_use_original_mlp": True} if "glu_activation" in kernels.liger else {}
        yield Change(settings={"tiled_mlp": True, **original})


CANDIDATE = Candidate(
    name="tiled_mlp",
    about=__doc__,
    cost="the MLP runs in parts, one after another: slower steps",
    grade=Grade.SLOWER,
    group="tiled_mlp",
    propose=propose,
)
