"""Liger's kernels for norms, rotary embedding and the gated MLP keep fewer tensors for backward.

They need axolotl's plugin and the package `liger-kernel`. The results are the same except for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.recipe.run import LIGER_KEYS

_LAYERS = ("rope", "rms_norm", "glu_activation")


def propose(situation: Situation) -> Iterator[Change]:
    """All three kernels, if one of them is off."""
    keys = [LIGER_KEYS[layer] for layer in _LAYERS if layer not in situation.recipe.kernels.liger]
    if keys:
        yield Change(settings={**situation.with_plugin("liger"), **dict.fromkeys(keys, True)})


CANDIDATE = Candidate(
    name="liger_layers",
    about=__doc__,
    cost="nothing known; needs the package liger-kernel",
    grade=Grade.FREE,
    group="liger_layers",
    propose=propose,
)
