"""GPUs that people rent, by name: total memory, compute capability, and the CUDA context to expect.

`Gpu.memory_bytes` is what CUDA gives a process (`torch.cuda.get_device_properties(0).total_memory`), which is less than
the number on the box: the driver and ECC keep a part. Each row says how its figure in GiB is known:

- `reported`: the "total capacity" that PyTorch prints on this card in public out-of-memory messages and environment
  reports ("GPU 0 has a total capacity of 79.10 GiB"), remembered and not re-read here; it moves by some 0.2 GiB with
  the driver, and the smaller of several is taken;
- `assumed`: no such figure known to us; the nominal size less the share that reported cards of its generation lose.

`context_bytes` is memory outside PyTorch's allocator: the CUDA context, loaded kernel modules (loaded lazily since CUDA
11.7) and cuBLAS handles. It depends on driver, libraries and the number of SMs (the context holds local-memory stacks
per SM), so it is an assumption per card class, between 0.25 GiB (small, old) and 0.6 GiB (Blackwell).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal

from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Gpu
from axmem_trace.units import GIB, MIB, parse_bytes

MIN_CARD_BYTES = GIB // 2
MAX_CARD_BYTES = 2048 * GIB

CONTEXT_BYTES_BY_GENERATION = {
    (7, 0): 310 * MIB,
    (7, 5): 256 * MIB,
    (8, 0): 430 * MIB,
    (8, 6): 300 * MIB,
    (8, 9): 380 * MIB,
    (9, 0): 520 * MIB,
    (10, 0): 600 * MIB,
    (10, 3): 600 * MIB,
    (12, 0): 480 * MIB,
}
"""Assumed. A CUDA context with cuBLAS and PyTorch's kernels loaded lazily shows as some 250-600 MiB in `nvidia-smi`."""
DEFAULT_CAPABILITY = (8, 0)
"""Of a card given by its size alone, or not at all: Ampere, so that `bf16: auto` means bf16, as on every card rented
for training."""
UNNAMED_GPU = Gpu(compute_capability=DEFAULT_CAPABILITY, context_bytes=CONTEXT_BYTES_BY_GENERATION[DEFAULT_CAPABILITY])
"""No card was named: nothing can be said about fitting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One row: `gib` is the usable memory in GiB as PyTorch prints it; `basis` says how that is known."""

    name: str
    gib: float
    capability: tuple[int, int]
    basis: Literal["reported", "assumed"]
    other_names: tuple[str, ...] = ()


def _card(name: str, gib: float, capability: tuple[int, int], basis: str, *other_names: str) -> Card:
    return Card(
        name=name,
        gib=gib,
        capability=capability,
        basis="reported" if basis == "reported" else "assumed",
        other_names=other_names,
    )


# fmt: off
CARDS: tuple[Card, ...] = (
    _card("V100-16GB", 15.77, (7, 0), "reported", "V100", "Tesla V100-SXM2-16GB", "V100-PCIE-16GB"),
    _card("V100-32GB", 31.73, (7, 0), "reported", "Tesla V100-SXM2-32GB", "V100-SXM3-32GB", "V100-PCIE-32GB"),
    _card("T4", 14.56, (7, 5), "reported", "Tesla T4"),
    _card("RTX 2080 Ti", 10.75, (7, 5), "reported", "GeForce RTX 2080 Ti"),
    _card("TITAN RTX", 23.65, (7, 5), "reported"),
    _card("Quadro RTX 6000", 23.65, (7, 5), "assumed"),
    _card("Quadro RTX 8000", 47.45, (7, 5), "assumed"),
    _card("A100-40GB", 39.39, (8, 0), "reported", "A100-SXM4-40GB", "A100-PCIE-40GB"),
    _card("A100-80GB", 79.15, (8, 0), "reported", "A100", "A100-SXM4-80GB", "A100-PCIE-80GB", "A100 80GB PCIe",
          "A800-80GB"),
    _card("A30", 23.50, (8, 0), "assumed"),
    _card("A10", 22.06, (8, 6), "reported"),
    _card("A10G", 22.06, (8, 6), "reported"),
    _card("A16", 14.54, (8, 6), "assumed"),
    _card("A40", 44.35, (8, 6), "reported"),
    _card("RTX 3060", 11.76, (8, 6), "reported", "RTX 3060 12GB", "GeForce RTX 3060"),
    _card("RTX 3060 Ti", 7.78, (8, 6), "assumed", "GeForce RTX 3060 Ti"),
    _card("RTX 3070", 7.78, (8, 6), "reported", "RTX 3070 Ti", "GeForce RTX 3070"),
    _card("RTX 3080", 9.78, (8, 6), "reported", "RTX 3080 10GB", "GeForce RTX 3080"),
    _card("RTX 3080 12GB", 11.76, (8, 6), "assumed", "RTX 3080 Ti", "GeForce RTX 3080 Ti"),
    _card("RTX 3090", 23.57, (8, 6), "reported", "GeForce RTX 3090"),
    _card("RTX 3090 Ti", 23.69, (8, 6), "assumed", "GeForce RTX 3090 Ti"),
    _card("RTX A2000 12GB", 11.76, (8, 6), "assumed", "RTX A2000"),
    _card("RTX A4000", 15.73, (8, 6), "reported"),
    _card("RTX A4500", 19.70, (8, 6), "assumed"),
    _card("RTX A5000", 23.69, (8, 6), "reported"),
    _card("RTX A5500", 23.69, (8, 6), "assumed"),
    _card("RTX A6000", 47.54, (8, 6), "reported", "A6000"),
    _card("L4", 22.03, (8, 9), "reported"),
    _card("L40", 44.39, (8, 9), "assumed"),
    _card("L40S", 44.39, (8, 9), "reported"),
    _card("RTX 4060", 7.63, (8, 9), "assumed", "GeForce RTX 4060"),
    _card("RTX 4060 Ti 16GB", 15.60, (8, 9), "reported", "RTX 4060 Ti", "GeForce RTX 4060 Ti"),
    _card("RTX 4070", 11.73, (8, 9), "reported", "RTX 4070 Super", "RTX 4070 Ti", "GeForce RTX 4070"),
    _card("RTX 4070 Ti Super", 15.70, (8, 9), "assumed", "GeForce RTX 4070 Ti Super"),
    _card("RTX 4080", 15.70, (8, 9), "reported", "RTX 4080 Super", "GeForce RTX 4080"),
    _card("RTX 4090", 23.51, (8, 9), "reported", "GeForce RTX 4090", "RTX 4090 D"),
    _card("RTX 4000 Ada", 19.55, (8, 9), "assumed"),
    _card("RTX 5000 Ada", 31.60, (8, 9), "assumed"),
    _card("RTX 6000 Ada", 47.50, (8, 9), "reported", "RTX 6000 Ada Generation", "6000 Ada"),
    _card("H100", 79.10, (9, 0), "reported", "H100 80GB", "H100 SXM", "H100 SXM5 80GB", "H100 80GB HBM3", "H800"),
    _card("H100 PCIe", 79.18, (9, 0), "reported", "H100 PCIe 80GB", "H100 80GB PCIe"),
    _card("H100 NVL", 93.00, (9, 0), "assumed", "H100 NVL 94GB"),
    _card("H100 96GB", 95.00, (9, 0), "assumed", "H100 SXM5 96GB"),
    _card("GH200 96GB", 94.50, (9, 0), "reported", "GH200", "GH200 480GB"),
    _card("GH200 144GB", 141.00, (9, 0), "assumed", "GH200 144G HBM3e"),
    _card("H20", 95.00, (9, 0), "assumed", "H20 96GB"),
    _card("H200", 139.81, (9, 0), "reported", "H200 141GB", "H200 SXM", "H200 NVL"),
    _card("B200", 178.35, (10, 0), "reported", "B200 180GB", "B200 192GB"),
    _card("GB200", 184.00, (10, 0), "assumed"),
    _card("B300", 267.00, (10, 3), "assumed", "B300 288GB", "B300 270GB"),
    _card("GB300", 276.00, (10, 3), "assumed"),
    _card("RTX 5060 Ti 16GB", 15.47, (12, 0), "reported", "RTX 5060 Ti", "GeForce RTX 5060 Ti"),
    _card("RTX 5070", 11.50, (12, 0), "assumed", "GeForce RTX 5070"),
    _card("RTX 5070 Ti", 15.47, (12, 0), "reported", "GeForce RTX 5070 Ti"),
    _card("RTX 5080", 15.47, (12, 0), "reported", "GeForce RTX 5080"),
    _card("RTX 5090", 31.37, (12, 0), "reported", "GeForce RTX 5090", "RTX 5090 D"),
    _card("RTX PRO 4500 Blackwell", 31.30, (12, 0), "assumed", "RTX PRO 4500"),
    _card("RTX PRO 5000 Blackwell", 47.00, (12, 0), "assumed", "RTX PRO 5000"),
    _card("RTX PRO 6000 Blackwell", 94.97, (12, 0), "reported", "RTX PRO 6000", "RTX PRO 6000 Blackwell Server Edition",
          "RTX PRO 6000 Blackwell Workstation Edition", "RTX 6000 Pro", "RTX PRO 6000 96GB"),
)
# fmt: on

_NOT_CUDA = re.compile(r"MI\d{2,3}[AX]?|RADEON.*|RX\d{4}.*|GAUDI\d?|TPU.*|M[1-5](PRO|MAX|ULTRA)?|ARC.*")


def find_gpu(text: str) -> Gpu:
    """A card by name (`A100-80GB`, `rtx4090`, `NVIDIA H100 80GB HBM3`) or a bare size (`24GiB`, `80GB`).

    Case, spaces, dashes, `NVIDIA` and `GeForce` don't matter. A size is taken literally as usable memory, on a card of
    compute capability `DEFAULT_CAPABILITY`. bf16 is supported from compute capability 8.0 on.

    Raises:
        ConfigError: no card of this name (with the nearest names), or no sensible size, or no CUDA card.
    """
    folded = _fold(text)
    card = _cards_by_folded_name().get(folded)
    if card is not None:
        return Gpu(
            name=card.name,
            memory_bytes=round(card.gib * GIB),
            compute_capability=card.capability,
            context_bytes=CONTEXT_BYTES_BY_GENERATION[card.capability],
        )
    if _NOT_CUDA.fullmatch(folded.removeprefix("AMD").removeprefix("INTEL").removeprefix("APPLE")):
        raise ConfigError(
            problem=f"{text!r} is no CUDA GPU; the kernels and the allocator modelled here are CUDA's",
            remedy="name an NVIDIA card, or give a size such as 192GiB to compare with its memory alone",
        )
    return _gpu_by_size(text)


def supports_bf16(gpu: Gpu) -> bool:
    """Whether the card computes in bfloat16, which `bf16: auto` asks (compute capability 8.0, Ampere, and later)."""
    return gpu.compute_capability >= (8, 0)


def _gpu_by_size(text: str) -> Gpu:
    try:
        size = parse_bytes(text)
    except (ValueError, OverflowError):  # OverflowError: hundreds of digits
        raise _unknown(text) from None
    if not MIN_CARD_BYTES <= size <= MAX_CARD_BYTES:
        raise ConfigError(
            problem=f"{text!r} is {size:,} bytes, which no GPU has",
            accepted="a size between 512MiB and 2TiB, with its unit: 24GiB, 80GB",
        )
    return replace(UNNAMED_GPU, name=text.strip(), memory_bytes=size)


def _unknown(text: str) -> ConfigError:
    names = {_fold(name): name for card in CARDS for name in (card.name, *card.other_names)}
    nearest = difflib.get_close_matches(_fold(text), names, n=4, cutoff=0.5)
    return ConfigError(
        problem=f"no GPU named {text!r} is known",
        accepted="a card such as " + ", ".join([names[name] for name in nearest] or ["A100-80GB", "H100", "RTX 4090"]),
        remedy="use one of these names, or give the card's usable memory, such as 24GiB or 80GB",
    )


def _fold(text: str) -> str:
    plain = re.sub(r"[^A-Z0-9]", "", text.upper())
    for word in ("NVIDIA", "GEFORCE", "TESLA"):
        plain = plain.replace(word, "")
    return plain.replace("GIB", "GB")


def _cards_by_folded_name() -> dict[str, Card]:
    cards: dict[str, Card] = {}
    for card in CARDS:
        for name in (card.name, *card.other_names):
            folded = _fold(name)
            cards.setdefault(folded, card)
            cards.setdefault(folded.removeprefix("RTX"), card)
    return cards
