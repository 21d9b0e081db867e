"""A fused attention kernel never stores the full matrix of scores, which has sequence x sequence elements for each
head.

`eager` stores it, and a copy in fp32. `sdpa` does not store it, unless a mask makes PyTorch use another kernel.
FlashAttention-2 needs the package `flash-attn` and a card with compute capability 8.0 or later; packed rows need no
mask with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from axmem_trace.advice.fitting.candidate import Candidate, Change, Grade, Situation

_OLD_SWITCHES = (
    "eager_attention",
    "sdp_attention",
    "flex_attention",
    "xformers_attention",
    "sage_attention",
    "flash_attention",
)


def propose(situation: Situation) -> Iterator[Change]:
    """SDPA instead of eager, and FlashAttention-2 instead of both. SDPA if the card is too old for FlashAttention."""
    kernel = situation.recipe.attention.kernel
    old = {key: None for key in _OLD_SWITCHES if situation.values.get(key)}
    too_old = kernel.startswith("flash_attention") and situation.recipe.gpu.compute_capability < (8, 0)
    if kernel == "eager" or too_old:
        yield Change(settings={**old, "attn_implementation": "sdpa"}, cost="nothing known")
    if kernel in ("eager", "sdpa", "flex_attention", "xformers"):
        yield Change(settings={**old, "attn_implementation": "flash_attention_2"})


CANDIDATE = Candidate(
    name="attention_kernel",
    about=__doc__,
    cost="nothing known; needs the package flash-attn",
    grade=Grade.FREE,
    group="attention",
    propose=propose,
)
