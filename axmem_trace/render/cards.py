"""The table of NVIDIA cards, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from axmem_trace.catalogue.pattern import make_matcher
from axmem_trace.units import GIB

if TYPE_CHECKING:
    from axmem_trace.catalogue.cards import Card

LEAD = """\
GiB: memory that CUDA gives a process (PyTorch's total_memory), less than the
GB on the box. reported: PyTorch prints it in public messages; assumed: no such
figure is known, and the share that like cards lose is taken off
"""


def find_cards(pattern: str = "") -> list[Card]:
    """Cards and MIG slices with a name that contains `pattern`, or matches it if it has `*`, `?` or `[`; any case."""
    from axmem_trace.catalogue.gpus import list_cards

    matches = make_matcher(pattern)
    return [card for card in list_cards() if any(map(matches, (card.name, *card.other_names)))]


def render_cards(cards: Sequence[Card], form: str) -> str:
    """The cards as aligned lines with a head (`text`), or as a JSON list of objects (`json`)."""
    if form == "json":
        return json.dumps([_to_dict(card) for card in cards], indent=2) + "\n"
    width = max([len(_label(card)) for card in cards], default=0)
    lines = [f"{'card':{width}}  {'GB':>4}  {'GiB':>7}  {'compute':>7}  known by"]
    for card in cards:
        compute = ".".join(map(str, card.capability))
        lines.append(f"{_label(card):{width}}  {card.nominal_gb:>4}  {card.gib:>7.2f}  {compute:>7}  {card.basis}")
        lines += [f"  = {name}" for name in card.other_names]
    return LEAD + "\n" + "\n".join(lines) + "\n"


def _label(card: Card) -> str:
    """A slice is listed under its card."""
    whole, is_slice, profile = card.name.partition(" MIG ")
    return f"  MIG {profile}" if is_slice else whole


def _to_dict(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "nominal_gb": card.nominal_gb,
        "memory_bytes": round(card.gib * GIB),
        "compute_capability": list(card.capability),
        "basis": card.basis,
        "other_names": list(card.other_names),
        "shares_system_memory": card.shared,
    }
