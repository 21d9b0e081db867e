"""axolotl's names of the same optimizer in bitsandbytes' forms."""

from __future__ import annotations

from typing import NamedTuple


class Forms(NamedTuple):
    """The names of the forms; empty: there is no such form."""

    paged: str
    """32-bit states in managed memory."""
    eight_bits: str
    paged_eight_bits: str


_ADAMW = Forms("paged_adamw_32bit", "adamw_bnb_8bit", "paged_adamw_8bit")
_LION = Forms("paged_lion_32bit", "lion_8bit", "paged_lion_8bit")
_ADEMAMIX = Forms("paged_ademamix_32bit", "ademamix_8bit", "paged_ademamix_8bit")

FORMS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_anyprecision"), _ADAMW),
    "paged_adamw_32bit": Forms("", "", _ADAMW.paged_eight_bits),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), Forms("", "", _ADAMW.paged_eight_bits)),
    "lion_32bit": _LION,
    "paged_lion_32bit": Forms("", "", _LION.paged_eight_bits),
    "lion_8bit": Forms("", "", _LION.paged_eight_bits),
    "ademamix": _ADEMAMIX,
    "paged_ademamix_32bit": Forms("", "", _ADEMAMIX.paged_eight_bits),
    "ademamix_8bit": Forms("", "", _ADEMAMIX.paged_eight_bits),
    "rmsprop": Forms("", "rmsprop_bnb_8bit", ""),
}
"""For each optimizer, the forms that need less memory on the card."""
NO_FORMS = Forms("", "", "")
