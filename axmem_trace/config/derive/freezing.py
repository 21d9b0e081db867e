"""Which parameters are frozen.

Source: axolotl `train.py` (`unfrozen_parameters`), `utils/callbacks/lisa.py`, `integrations/spectrum`."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import Freezing


def derive_freezing(draft: Draft) -> Freezing:
    """`Freezing` from the keys."""
    lisa = draft.get("lisa_n_layers") or 0 if draft.get("lisa_step_interval") else 0
    if draft.get("lisa_n_layers") and not lisa:
        text = "`lisa_n_layers` has no effect without `lisa_step_interval`"
        draft.note("warning", "lisa_n_layers", text)
    spectrum = draft.get("spectrum_top_fraction") if "spectrum" in draft.plugins else 0.0
    return Freezing(
        unfrozen=tuple(draft.get("unfrozen_parameters") or ()),
        lisa_layers=lisa,
        spectrum_top_fraction=float(spectrum or 0.0),
    )
