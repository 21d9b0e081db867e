"""The table of NVIDIA cards, and the cards that a run fits, as text or JSON."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from axmem_trace.advice.cards import figures, merge_equal, num_shown, smallest
from axmem_trace.catalogue.pattern import make_matcher
from axmem_trace.units import GIB, gib

if TYPE_CHECKING:
    from axmem_trace.advice.cards import CardFit
    from axmem_trace.catalogue.cards import Card

WIDTH = 80
"""Columns of a line of text."""
ABOUT_BATCH = """\
batch: the largest micro_batch_size that fits with rows of full length; the next
larger one does not.
Sizes are scaled from recordings of three micro batches; "-": they are not on
one line. Beside "<- smallest" that micro batch and the next one were recorded.
"""
LEAD = """\
GiB: memory that CUDA gives a process (PyTorch's total_memory), less than the
GB on the box. reported: PyTorch prints it in public messages; assumed: no such
figure is known, and the share that like cards lose is taken off
"""


def find_cards(pattern: str = "") -> list[Card]:
    """Cards and MIG slices whose name contains `pattern`, or matches it if it has `*`, `?` or `[`. Case does not
    matter."""
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


def render_fits(fits: Sequence[CardFit], form: str, *, everything: bool = False) -> str:
    """The cards that the run fits, smallest first: as aligned lines (`text`), or as a JSON list (`json`).

    Args:
        everything: whether every card has a line, also those that the run does not fit. If not, equal cards share a
            line, and the other cards are only counted.
    """
    if form == "json":
        return json.dumps([_fit_to_dict(fit) for fit in fits], indent=2) + "\n"
    counts = [*dict.fromkeys(fit.count for fit in fits)]
    most = num_shown(len(counts))
    numbers: dict[str, list[int]] = {}
    for count in counts:
        table = _render_count([fit for fit in fits if fit.count == count], most, everything)
        numbers.setdefault(table, []).append(count)
    parts = [_heading(same) + table for table, same in numbers.items()]
    if any(fit.largest for fit in fits):
        parts.append(ABOUT_BATCH)
    return "\n".join(parts)


def _heading(counts: Sequence[int]) -> str:
    """The heading of a table that is the same for these numbers of cards."""
    if counts == [0]:
        return ""
    *first, last = map(str, counts)
    return f"{', '.join(first)}{' or ' if first else ''}{last} GPU{'' if counts == [1] else 's, each'}:\n"


def _render_count(fits: Sequence[CardFit], most: int, everything: bool) -> str:
    """The lines for one number of cards: at most `most` lines, unless `everything` is shown."""
    fitting = merge_equal([fit for fit in fits if fit.fits])
    shown = fits if everything else fitting[:most]
    names = [_name(fit, fits) if not everything else fit.card.name for fit in shown]
    width = max([len("card"), *map(len, names)])
    head = f"  {'batch':>5}" if any(fit.largest for fit in shown) else ""
    lines = [f"{'card':{width}}  {'GiB':>7}  {'needs':>7}  {'left':>7}{head}  verdict"] if shown else []
    first = smallest(fits)
    for name, fit in zip(names, shown, strict=True):
        mark = "  <- smallest" if fit is first else ""
        sizes = f"{gib(fit.need_bytes):7.2f}  {gib(fit.left_bytes):7.2f}" if fit.need_bytes else f"{'-':>7}  {'-':>7}"
        batch = f"  {_batch(fit):>5}" if head else ""
        words = fit.verdict or f"can't run: {fit.reason}"
        lines.append(f"{name:{width}}  {fit.card.gib:7.2f}  {sizes}{batch}  {words}{mark}")
    rest = [] if everything else _left_out(fits, len(fitting) - len(shown))
    return "\n".join([*lines, *rest]) + "\n"


def _batch(fit: CardFit) -> str:
    if fit.largest is None:
        return "-"
    return f"{'>=' if fit.largest.is_limit else ''}{fit.largest.value}"


def _name(fit: CardFit, fits: Sequence[CardFit]) -> str:
    """The card's name, and the number of other cards with equal figures."""
    others = sum(figures(other) == figures(fit) for other in fits) - 1
    return f"{fit.card.name} (and {others} like it)" if others else fit.card.name


def _left_out(fits: Sequence[CardFit], num_larger: int) -> list[str]:
    """The numbers of cards that are not shown, with the reason."""
    reasons = Counter(f"can't run: {fit.reason}" if not fit.verdict else fit.verdict for fit in fits if not fit.fits)
    lines = []
    for reason, number in reasons.items():
        cards = "card" if number == 1 else "cards"
        lines += textwrap.wrap(f"{number} {cards}: {reason}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if num_larger:
        lines.insert(0, f"and {num_larger} sizes larger")
    return [*lines, "--all shows every card"] if lines else []


def _fit_to_dict(fit: CardFit) -> dict[str, Any]:
    return {
        "card": fit.card.name,
        "gpus": fit.count or None,
        "memory_bytes": round(fit.card.gib * GIB),
        "compute_capability": list(fit.card.capability),
        "verdict": fit.verdict,
        "fits": fit.fits if fit.verdict and fit.verdict != "cannot say" else None,
        "need_bytes": fit.need_bytes,
        "left_bytes": fit.left_bytes,
        "largest_micro_batch": fit.largest.value if fit.largest else None,
        "largest_is_recorded": fit.largest.recorded if fit.largest else None,
        "reason": fit.reason,
    }


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
