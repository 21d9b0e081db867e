"""MIG slices: a card divided into instances, each with its own memory (`A100-SXM4-40GB MIG 3g.20gb`, `H100 1g.10gb`).

`Kg.Mgb` means K compute slices with M GB. The memory is divided into eighths (A30 and RTX PRO: quarters), and a profile
gets 1, 2, 4 or 8 of them. The driver uses a part of each instance. Source: NVIDIA's MIG user guide, "Supported MIG
profiles" (fraction of memory), and the output of `nvidia-smi mig -lgip` there; written from memory, not looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from axmem_trace.catalogue.cards import CARDS, Card

PROFILE = re.compile(r"(?:MIG[\s:_-]*)?\b(?P<compute>[1-7])G\.(?P<gb>\d{1,3})GB(?P<extra>\+[A-Z.+]+)?", re.IGNORECASE)
"""The name of a profile. `+me` adds media engines and `-me` removes them; neither changes memory."""

_EIGHTHS = {1: (1, 2), 2: (2,), 3: (4,), 4: (4,), 7: (8,)}
_QUARTERS = {1: (1,), 2: (2,), 4: (4,)}
"""Compute slices of a profile -> the numbers of memory slices that it can have."""
_IN_QUARTERS = ("A30", "RTX PRO 5000 Blackwell", "RTX PRO 5000 72GB Blackwell", "RTX PRO 6000 Blackwell")
_IN_EIGHTHS = (
    "A100-80GB",
    "A100-40GB",
    "A100-64GB",
    "A800-80GB",
    "A800-40GB",
    "H100-80GB",
    "H100 PCIe",
    "H100 NVL",
    "H100-96GB",
    "H100-64GB",
    "H800",
    "H200",
    "H20-96GB",
    "H20-141GB",
    "GH200-96GB",
    "GH200-144GB",
    "B200",
    "GB200",
    "B300",
    "GB300",
)
_SLICES_OF_40GB = {1: 4.75, 2: 9.62, 4: 19.50, 8: 39.25}
_SLICES_OF_80GB = {1: 9.50, 2: 19.50, 4: 39.25, 8: 78.75}
_REPORTED = {
    **dict.fromkeys(("A100-40GB", "A800-40GB"), _SLICES_OF_40GB),
    **dict.fromkeys(("A100-80GB", "A800-80GB", "H100-80GB", "H100 PCIe", "H800"), _SLICES_OF_80GB),
}
"""Card -> memory slices -> GiB. If drivers differ, the smaller figure."""
ROUNDING = 0.03
"""The tolerance for the GB of a profile, as a share: NVIDIA rounds the GB in names in several ways (B300: 1g.34gb,
2g.67gb)."""
_KEPT_SHARE = 0.085
"""The share of a slice that the driver uses, assumed for other cards. It is that of an H200's smallest slice, the largest
known share (16.00 of 139.81 / 8 GiB)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """`3g.20gb`: compute slices and GB."""

    compute: int
    gb: int

    def __str__(self) -> str:
        return f"{self.compute}g.{self.gb}gb"


def parse_profile(text: str) -> tuple[str, Profile] | None:
    """`text` without the profile, and the profile; None if `text` names no profile.

    >>> parse_profile("NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    ('NVIDIA A100-SXM4-40GB', Profile(compute=3, gb=20))
    """
    match = PROFILE.search(text)
    if match is None:
        return None
    rest = f"{text[: match.start()]} {text[match.end() :]}".strip(" -_:/,")
    return rest, Profile(int(match["compute"]), int(match["gb"]))


def cut(card: Card, profile: Profile) -> Card | None:
    """The slice as a separate card; None if this card has no such profile."""
    for offered, parts in _profiles(card):
        if offered.compute == profile.compute and abs(offered.gb - profile.gb) <= ROUNDING * profile.gb:
            return _slice(card, profile, parts)
    return None


def list_slices(card: Card) -> list[Card]:
    """All slices of a card, smallest first, without the whole card."""
    return [_slice(card, profile, parts) for profile, parts in _profiles(card) if profile.compute < _whole(card)]


def cards_with(profile: Profile) -> list[Card]:
    """The cards that have this profile."""
    return [card for card in CARDS if cut(card, profile)]


def _whole(card: Card) -> int:
    return 4 if card.name in _IN_QUARTERS else 7


def _profiles(card: Card) -> Iterator[tuple[Profile, int]]:
    """Each profile with its number of memory slices. Its GB are the rounded share of the nominal size."""
    if card.name in _IN_EIGHTHS:
        for compute, choices in _EIGHTHS.items():
            for parts in choices:
                yield Profile(compute, _rounded(card.nominal_gb * parts, 8)), parts
    elif card.name in _IN_QUARTERS:
        for compute, choices in _QUARTERS.items():
            for parts in choices:
                yield Profile(compute, _rounded(card.nominal_gb * parts, 4)), 2 * parts


def _rounded(gb: int, parts: int) -> int:
    """Rounds to the nearest integer, halves up: 141 / 8 is 18, 2 x 141 / 8 is 35."""
    return (2 * gb + parts) // (2 * parts)


def _slice(card: Card, profile: Profile, eighths: int) -> Card:
    reported = _REPORTED.get(card.name, {}).get(eighths)
    gib = reported or round(card.gib * eighths / 8 * (1 - _KEPT_SHARE), 2)
    return replace(
        card,
        name=f"{card.name} MIG {profile}",
        nominal_gb=profile.gb,
        gib=gib,
        other_names=(),
        basis="reported" if reported else "assumed",
    )
