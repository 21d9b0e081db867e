"""The only module that formats bytes as text. 1 GiB = 2^30 bytes, as in `nvidia-smi` and axolotl's log."""

from __future__ import annotations

import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SUFFIXES = {
    "": 1,
    "B": 1,
    "K": KIB,
    "KB": 1000,
    "KIB": KIB,
    "M": MIB,
    "MB": 1000**2,
    "MIB": MIB,
    "G": GIB,
    "GB": 1000**3,
    "GIB": GIB,
    "T": GIB << 10,
    "TB": 1000**4,
    "TIB": GIB << 10,
}


def gib(nbytes: int) -> float:
    """Bytes to GiB."""
    return nbytes / GIB


def format_bytes(nbytes: int) -> str:
    """Bytes in the largest binary unit in which the number is at least 1.

    >>> format_bytes(0), format_bytes(1536), format_bytes(25 << 30)
    ('0 B', '1.5 KiB', '25.00 GiB')
    """
    size = abs(nbytes)
    if size >= GIB:
        return f"{nbytes / GIB:.2f} GiB"
    if size >= MIB:
        return f"{nbytes / MIB:.1f} MiB"
    if size >= KIB:
        return f"{nbytes / KIB:.1f} KiB"
    return f"{nbytes} B"


def whole_mib(nbytes: int) -> str:
    """Rounded down to MiB, as `parse_bytes` reads it.

    >>> whole_mib(24 << 30)
    '24576MiB'
    """
    return f"{nbytes // MIB}MiB"


def parse_margin(text: str) -> tuple[int, float]:
    """`"1GiB"` to bytes and 0.0, `"5%"` to 0 bytes and a share of the card.

    Raises:
        ValueError: the text is neither a size with its unit nor a percentage from 0 to 100.

    >>> parse_margin("1GiB"), parse_margin("5%")
    ((1073741824, 0.0), (0, 0.05))
    """
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if share and float(share[1]) <= 100:
        return 0, float(share[1]) / 100
    if share or re.fullmatch(r"\s*[\d.]+\s*", text):
        raise ValueError(f"{text!r} is neither a size with its unit (1GiB) nor a share of the card (5%)")
    return parse_bytes(text), 0.0


def parse_bytes(text: str | int) -> int:
    """`"24GiB"`, `"80 GB"` (1000-based), `"512M"` or a plain number of bytes, to bytes.

    Raises:
        ValueError: the text is not a size.

    >>> parse_bytes("24GiB") == 24 << 30, parse_bytes(4096)
    (True, 4096)
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a size such as 24GiB, 80GB or 512MiB")
    return int(float(match[1]) * _SUFFIXES[match[2].upper()])
