"""axolotl's fused LoRA kernels calculate a layer and its adapters in one autograd function, which keeps fewer tensors.

axolotl switches them on automatically for most LoRA runs. This change is for runs that set only some of the keys, or
for which axolotl does not switch them on.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation
from axmem_trace.recipe.run import LORA_KERNEL_KEYS

_KERNELS = ("mlp", "qkv", "o")


def propose(situation: Situation) -> Iterator[Change]:
    """Those of the three kernels that are off."""
    recipe = situation.recipe
    missing = [kernel for kernel in _KERNELS if kernel not in recipe.kernels.lora]
    if recipe.adapter.kind in ("lora", "qlora") and missing:
        yield Change(settings={LORA_KERNEL_KEYS[kernel]: True for kernel in _KERNELS})


CANDIDATE = Candidate(
    name="lora_kernels",
    about=__doc__,
    cost="nothing known",
    grade=Grade.FREE,
    group="lora_kernels",
    propose=propose,
)
