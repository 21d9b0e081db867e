"""Finds the card that a user names: as in `nvidia-smi`, by a short name, as a MIG slice, or only by its memory.

`context_bytes` is memory outside PyTorch's allocator: the CUDA context, loaded kernel modules (loaded lazily since CUDA
11.7) and cuBLAS handles. It depends on the driver, the libraries and the number of SMs (the context has local-memory stacks
for each SM). So it is an assumption for each generation, between 0.25 GiB (small, old) and 0.6 GiB (Blackwell).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from functools import lru_cache

from axmem_trace.catalogue.cards import CARDS, DATA_CENTRE, DESKTOP, WORKSTATION, Card
from axmem_trace.catalogue.mig import Profile, cards_with, cut, list_slices, parse_profile
from axmem_trace.catalogue.other_makers import refuse_other_makers
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Gpu
from axmem_trace.units import GIB, MIB, format_bytes, parse_bytes

MIN_CARD_BYTES = GIB // 2
MAX_CARD_BYTES = 2048 * GIB
USUAL_GB = 8

CONTEXT_BYTES_BY_GENERATION = {
    (6, 0): 300 * MIB,
    (6, 1): 256 * MIB,
    (7, 0): 310 * MIB,
    (7, 5): 256 * MIB,
    (8, 0): 430 * MIB,
    (8, 6): 300 * MIB,
    (8, 7): 300 * MIB,
    (8, 9): 380 * MIB,
    (9, 0): 520 * MIB,
    (10, 0): 600 * MIB,
    (10, 3): 600 * MIB,
    (11, 0): 480 * MIB,
    (12, 0): 480 * MIB,
    (12, 1): 480 * MIB,
}
"""Assumed. `nvidia-smi` shows about 250-600 MiB for a CUDA context with cuBLAS and lazily loaded PyTorch kernels."""
DEFAULT_CAPABILITY = (8, 0)
"""For a card that is given only by its size, or not at all: Ampere. Like every card that is rented for training, it supports
bf16."""
OLDEST_IN_WHEELS = (7, 5)
"""The oldest cards for which PyTorch's current wheels have kernels: `torch.cuda.get_arch_list()` of 2.14.1+cu130 begins
with sm_75. The wheels for CUDA 12.6 begin with sm_50."""
UNNAMED_GPU = Gpu(compute_capability=DEFAULT_CAPABILITY, context_bytes=CONTEXT_BYTES_BY_GENERATION[DEFAULT_CAPABILITY])
"""Used if no card was named: it is not known whether the run fits."""

_COUNTED = re.compile(r"\s*(?P<count>\d{1,6})\s*[x*\u00d7]\s*(?P<name>\S.*)", re.IGNORECASE)


def split_count(text: str) -> tuple[int, str]:
    """The number of cards and the name in `4 x A100-40GB`, `4xA100` or `8*H100`; 0 and the text if it has no number.

    >>> split_count("4 x A100-40GB"), split_count("2xA100"), split_count("4090")
    ((4, 'A100-40GB'), (2, 'A100'), (0, '4090'))

    Raises:
        ConfigError: the number is 0.
    """
    match = _COUNTED.fullmatch(text)
    if match is None:
        return 0, text
    if not int(match["count"]):
        raise ConfigError(problem=f"--gpu {text}: at least 1 is needed", key="--gpu", remedy="give the number once")
    return int(match["count"]), match["name"].strip()


def find_gpu(text: str) -> Gpu:
    """One card by name (`A100-80GB`, `rtx4090`, `NVIDIA H100 80GB HBM3`), a MIG slice (`H100 1g.10gb`) or a bare size
    (`24GiB`, `80GB`).

    Case, spaces, dashes, `NVIDIA` and `GeForce` are ignored; `Laptop GPU` means `Laptop`. If several cards have the name,
    the first in the table is used, and `Gpu.remarks` says so. A size is the usable memory of a card of compute capability
    `DEFAULT_CAPABILITY`. bf16 is supported from compute capability 8.0 on.

    Raises:
        ConfigError: no card has this name (the error has the nearest names), the size is not plausible, or the name is not
            that of a CUDA card.
    """
    sliced = parse_profile(text)
    if sliced:
        return _find_slice(text, *sliced)
    cards = _cards_named(text)
    if cards:
        return _gpu(cards[0], _which(text, cards))
    refuse_other_makers(text)
    return _gpu_by_size(text)


def list_cards() -> list[Card]:
    """Every card of the table, each followed by its MIG slices."""
    return [each for card in CARDS for each in (card, *list_slices(card))]


def list_usual_cards() -> list[Card]:
    """Cards that are common for training, each with its MIG slices.

    They have at least `USUAL_GB` of memory, and PyTorch's wheels support them. Laptops and small systems are excluded.
    """
    return [
        each
        for card in (*DATA_CENTRE, *DESKTOP, *WORKSTATION)
        for each in (card, *list_slices(card))
        if each.capability >= OLDEST_IN_WHEELS and each.nominal_gb >= USUAL_GB
    ]


def _gpu(card: Card, remarks: tuple[str, ...]) -> Gpu:
    return Gpu(
        name=card.name,
        memory_bytes=round(card.gib * GIB),
        compute_capability=card.capability,
        context_bytes=CONTEXT_BYTES_BY_GENERATION[card.capability],
        remarks=(*remarks, *_remarks_on(card)),
    )


def _which(text: str, cards: list[Card]) -> tuple[str, ...]:
    """A remark that says which of several cards with the name was used; empty if there is only one."""
    if len(cards) < 2:
        return ()
    others = ", ".join(f"{card.name} ({card.gib:.2f} GiB)" for card in cards[1:])
    taken = f"{cards[0].name} ({cards[0].gib:.2f} GiB)"
    return (f"{text.strip()!r} is the name of several cards: {taken} is used; for another, give its name: {others}",)


def _remarks_on(card: Card) -> tuple[str, ...]:
    remarks = []
    if card.shared:
        remarks.append(
            f"{card.name} has no memory of its own: the system, the data loader and the page cache use a part "
            f"of these {card.gib:.1f} GiB"
        )
    if card.capability < OLDEST_IN_WHEELS:
        major, minor = card.capability
        remarks.append(
            f"{card.name} has compute capability {major}.{minor}: PyTorch's current wheels (CUDA 13) have no "
            "kernels for it, so the run needs a PyTorch built for CUDA 12.6 or older"
        )
    return tuple(remarks)


def _find_slice(text: str, rest: str, profile: Profile) -> Gpu:
    whole = _cards_named(rest) if rest else cards_with(profile)
    if not whole:
        refuse_other_makers(rest)
        raise _unknown(rest) if rest else _no_slice(text, "any card known here", profile)
    slices = [each for card in whole if (each := cut(card, profile))]
    if not slices:
        raise _no_slice(text, whole[0].name, profile)
    distinct: dict[tuple[float, tuple[int, int]], Card] = {}
    for each in slices:  # the same memory and generation: any of them gives the same result
        distinct.setdefault((each.gib, each.capability), each)
    return _gpu(slices[0], _which(text, list(distinct.values())))


def _no_slice(text: str, name: str, profile: Profile) -> ConfigError:
    offered = [each.name for card in _cards_named(name) for each in list_slices(card)]
    return ConfigError(
        problem=f"{text.strip()!r}: {name} has no MIG profile {profile}",
        accepted=", ".join(offered) or "a slice such as A100-40GB 3g.20gb or H100 1g.10gb",
    )


def _cards_named(text: str) -> list[Card]:
    """The cards with this name. A size after the name (`V100 32GB`, `L4 24GB`, `A100-80`) selects one of them."""
    table = _cards_by_folded_name()
    found = table.get(_fold(text))
    if found:
        return found
    match = re.fullmatch(r"(?P<name>.*[A-Z0-9])[\s_-]+(?P<gb>\d+)\s*(Gi?B?)?", text.strip(), re.IGNORECASE)
    if match is None:
        return []
    return [card for card in table.get(_fold(match["name"]), []) if card.nominal_gb == int(match["gb"])]


def _gpu_by_size(text: str) -> Gpu:
    count, name = split_count(text)
    if count > 1:
        find_gpu(name)  # raises its own error if the name is unknown
        raise ConfigError(problem=f"{text.strip()!r} is {count} cards", remedy=f"use --gpu {name!r} --gpus {count}")
    try:
        size = parse_bytes(text)
    except (ValueError, OverflowError):  # OverflowError: hundreds of digits
        raise _unknown(text) from None
    if re.fullmatch(r"\s*[\d.]+\s*", text):
        raise _no_unit(text.strip())
    if not MIN_CARD_BYTES <= size <= MAX_CARD_BYTES:
        raise ConfigError(
            problem=f"{text!r} is {size:,} bytes, which no GPU has",
            accepted="a size between 512MiB and 2TiB, with its unit: 24GiB, 80GB",
        )
    return replace(UNNAMED_GPU, name=text.strip(), memory_bytes=size)


def _no_unit(text: str) -> ConfigError:
    number = float(text)
    problem = f"{text!r} has no unit"
    if not MIN_CARD_BYTES <= number * GIB <= MAX_CARD_BYTES:
        return ConfigError(problem=problem, accepted="a size between 512MiB and 2TiB, with its unit: 24GiB, 80GB")
    boxed = [card.name for card in (*DESKTOP, *DATA_CENTRE) if card.nominal_gb == number][:4]
    decimal = format_bytes(int(number * 1000**3))
    return ConfigError(
        problem=problem,
        accepted=f"{text}GiB (1024-based, as in nvidia-smi and PyTorch), {text}GB (1000-based: {decimal}), or a name",
        remedy=f"a card sold with {text} GB has less usable memory; name it: {', '.join(boxed)}" if boxed else "",
    )


def nearest_names(text: str) -> list[str]:
    """Up to four names that are most similar to `text`."""
    names = {_fold(name): name for card in CARDS for name in (card.name, *card.other_names)}
    return [names[name] for name in difflib.get_close_matches(_fold(text), names, n=4, cutoff=0.5)]


def _unknown(text: str) -> ConfigError:
    return ConfigError(
        problem=f"no GPU named {text!r} is known",
        accepted="a card such as " + ", ".join(nearest_names(text) or ["A100-80GB", "H100", "RTX 4090"]),
        remedy="use one of these names (`axmem_trace gpus --list` prints all), or give the card's usable memory, "
        "such as 23.5GiB",
    )


def _fold(text: str) -> str:
    plain = re.sub(r"[^A-Z0-9]", "", text.upper())
    for word in ("NVIDIA", "GEFORCE", "TESLA", "WITHMAXQDESIGN"):
        plain = plain.replace(word, "")
    plain = plain.replace("MOBILE", "LAPTOP").removesuffix("GPU")
    return plain.replace("GIB", "GB")


@lru_cache(maxsize=1)
def _cards_by_folded_name() -> dict[str, list[Card]]:
    """Spelling -> cards, for every spelling of every name. A card's own name means only that card."""
    shared: dict[str, list[Card]] = {}
    for card in CARDS:
        for name in dict.fromkeys((_fold(card.name), *map(_fold, card.other_names))):
            for spelling in {name, re.sub("^(RTX|GTX)(?=[0-9])", "", name)}:
                shared.setdefault(spelling, []).append(card)
    return shared | {_fold(card.name): [card] for card in CARDS}
