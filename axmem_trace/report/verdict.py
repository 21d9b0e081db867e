"""Whether the run fits, also if a part of its memory is not in the figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from axmem_trace.notes import Note
from axmem_trace.report.types import Buckets
from axmem_trace.units import format_bytes

Verdict = Literal["", "fits with room", "fits", "tight", "does not fit", "cannot say"]
ROOM_SHARE = 0.10
"""`fits with room`: at least this share of the card is left."""
MEASURED_ERROR = 0.01
"""`tight` never means less than this share. Allocated memory is more exact: the error is at most 0.12 % in nine of ten
published runs on one GPU (docs/accuracy.md). But reserved memory decides, and with expandable segments, axolotl's default,
it has only been compared with PyTorch's CUDA build without a GPU: it differs by at most 1 % there
(tests/measured/test_without_gpu.py)."""
MEASURED_ERROR_WITHOUT_EXPANDABLE_SEGMENTS = 0.119
"""How much more than predicted `nvidia-smi` showed at most, as a share of the prediction, in 51 of these runs with
PyTorch's default allocator, which fragments: -10.6 % of the measured figure (tests/measured/README.md,
`fms-base-L74`)."""

_MAY_NEED = {"more": "more", "less": "less", "either": "more or less"}
_TURNS = {True: ("more", "either"), False: ("less", "either")}
"""By answer, the directions of memory that is not modelled that could make the answer wrong."""


def judge(
    figures_fit: bool | None,
    notes: Iterable[Note],
    *,
    fits_without_activations: bool = True,
    free_bytes: int | None = None,
) -> tuple[bool | None, str]:
    """The verdict; or None and the reason, if the figures alone are not enough for a verdict.

    There is no verdict if the figures fit but the run may need more than they show, or if they don't fit but the run
    may need less. A change of only the activations can't make a run fit if its other tensors alone exceed the card.

    >>> judge(True, [Note(kind="not_modelled", key="rl", text="`rl: kto` is not in the figures", direction="more")])
    (None, 'may need more: `rl: kto` is not in the figures')
    >>> judge(False, [Note(kind="not_modelled", key="rl", text="`rl: kto` is not in the figures", direction="more")])
    (False, '')

    Args:
        figures_fit: whether the figures fit the card; None if no card was named.
        fits_without_activations: whether they fit without any activations (`bytes_besides_activations`).
        free_bytes: free bytes of the card without the margin; negative if the card is too small. A note that can't
            change the needed memory by this much does not count. None: every note counts.
    """
    if figures_fit is None:
        return None, ""
    doubts = [note for note in notes if note.kind == "not_modelled" and note.direction in _TURNS[figures_fit]]
    if not figures_fit and not fits_without_activations:
        doubts = [note for note in doubts if note.touches != "activations"]
    doubts = [note for note in doubts if _is_enough(note, free_bytes)]
    if not doubts:
        return figures_fit, ""
    line = f" (line {doubts[0].line})" if doubts[0].line else ""
    others = f", and {len(doubts) - 1} more" if len(doubts) > 1 else ""
    return None, f"{_may_need(doubts[0])}: {doubts[0].text}{line}{others}"


def _may_need(note: Note) -> str:
    amount = f"up to {format_bytes(note.at_most_bytes)} " if note.at_most_bytes else ""
    return f"may need {amount}{_MAY_NEED[note.direction]}"


def _is_enough(note: Note, free_bytes: int | None) -> bool:
    return not note.at_most_bytes or free_bytes is None or note.at_most_bytes >= abs(free_bytes)


def bytes_besides_activations(buckets: Buckets) -> int:
    """Bytes of the peak that do not depend on activations: models, gradients, optimizer states."""
    return buckets.total - buckets.activations - buckets.workspace


def explain_tight(measured_share: float, open_share: float, notes: Iterable[Note], need_bytes: int) -> str:
    """Why a run that fits is `tight`: what it may need in addition, and the reason.

    >>> explain_tight(0.014, 0.0, (), 10 << 30)
    'may need up to 143.4 MiB more: measured runs needed up to 1.4 % more than estimated'

    Args:
        measured_share: the error of predictions for such runs, as a share of the needed memory.
        open_share: of batches that differ in length and were not simulated.
    """
    amount = f"may need up to {format_bytes(round(max(measured_share, open_share) * need_bytes))} more"
    if open_share <= measured_share:
        return f"{amount}: measured runs needed up to {100 * measured_share:.1f} % more than estimated"
    return f"{amount}: {next(note.text for note in notes if note.key == 'lengths')}"


def name_verdict(
    fits: bool | None, why: str, headroom_bytes: int | None, memory_bytes: int, *, tight_share: float
) -> Verdict:
    """The verdict in words. It is `tight` if the free memory is less than the error of predictions for such runs.

    Args:
        fits, why: from `judge`.
        headroom_bytes: free bytes of the card at the peak; None if no card was named.
        memory_bytes: the memory of the card.
        tight_share: the error of predictions for such runs, as a share of the needed memory (`accuracy.tight_share`).
    """
    if why:
        return "cannot say"
    if fits is None or headroom_bytes is None:
        return ""
    if not fits:
        return "does not fit"
    if headroom_bytes < tight_share * (memory_bytes - headroom_bytes):
        return "tight"
    return "fits with room" if headroom_bytes >= ROOM_SHARE * memory_bytes else "fits"
