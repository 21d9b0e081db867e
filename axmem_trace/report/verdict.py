"""Whether the run fits, where something it asks for is not in the figures."""

from __future__ import annotations

from collections.abc import Iterable

from axmem_trace.notes import Note

_TURNS = {True: ("more", "either"), False: ("less", "either")}
"""Directions of what is not modelled that could make the opposite true."""


def judge(figures_fit: bool | None, notes: Iterable[Note]) -> tuple[bool | None, str]:
    """The verdict, and why it is withheld where the figures alone would say something.

    A run whose figures fit may still need more than they show, and one whose figures don't fit may need less: neither
    is said then.

    >>> judge(True, [Note(kind="not_modelled", key="rl", text="`rl: kto` is not in the figures", direction="more")])
    (None, '`rl: kto` is not in the figures')
    >>> judge(False, [Note(kind="not_modelled", key="rl", text="`rl: kto` is not in the figures", direction="more")])
    (False, '')

    Args:
        figures_fit: whether the figures are within the card; None where no card was named.
    """
    if figures_fit is None:
        return None, ""
    doubts = [note for note in notes if note.kind == "not_modelled" and note.direction in _TURNS[figures_fit]]
    if not doubts:
        return figures_fit, ""
    line = f" (line {doubts[0].line})" if doubts[0].line else ""
    others = f", and {len(doubts) - 1} more" if len(doubts) > 1 else ""
    return None, f"{doubts[0].text}{line}{others}"
